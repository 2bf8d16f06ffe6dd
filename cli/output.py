"""What the commands print: plain lines for people, or one JSON object."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# of a kind of task, beside the one that its metric names
OTHER_FIGURES = ("exact_match", "rmse", "perplexity")


def print_result(result: Mapping[str, Any], lines: Iterable[str], *, as_json: bool) -> None:
    """Prints `result` as JSON, or `lines`, to stdout."""
    if as_json:
        print_json(result)
    else:
        for line in lines:
            sys.stdout.write(printable(line) + "\n")


def print_json(result: Mapping[str, Any]) -> None:
    """Prints one JSON object on one line. ASCII, so that no locale can break it."""
    sys.stdout.write(json.dumps(_json_ready(result), allow_nan=False) + "\n")


def _json_ready(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    # JSON has no NaN and no infinity; null says that there is no number.
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def printable(text: str) -> str:
    """`text` with control characters escaped: names come from files and must not move a cursor."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in text
    )


def columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Indented names and values, the values aligned."""
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:<{width}}  {value}".rstrip() for name, value in rows]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """An indented table: the first `left` columns to the left, the others to the right."""
    # Measured as printed, or an escaped character would push its line out of the column.
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        "  "
        + "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]
    lines.insert(1, "  " + "  ".join("-" * width for width in widths))
    return lines


def fraction(value: float | None, signed: bool = False) -> str:
    """A fraction with three decimals, or a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:+.3f}" if signed else f"{value:.3f}"
