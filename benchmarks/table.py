"""The table that every benchmark ends with, and its file benchmarks/out/NAME.json (DESIGN.md)."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.machine import commit, machine, now
from edge_pslora.workspace.durable import write_bytes

Better = Literal["lower", "higher"]

MANY = 8  # repetitions from which quartiles say more than the extremes


@dataclass(frozen=True)
class Row:
    """One figure. low, high: over repetitions, see `row` and `median_row`.

    target, met: None where nothing was asked for.
    """

    figure: str
    measured: float
    low: float
    high: float
    unit: str
    target: float | None
    better: Better
    met: bool | None


def row(
    figure: str, values: Sequence[float], unit: str, better: Better, target: float | None = None
) -> Row:
    """The mean of the repetitions, held against the target.

    Raises:
        ValueError: no value, or one that is not finite.
    """
    if not values or not all(math.isfinite(v) for v in values):
        raise ValueError(f"{figure}: expected finite values; found {list(values)}")
    mean = sum(values) / len(values)
    low, high = min(values), max(values)
    mean = min(max(mean, low), high)  # rounding must not carry it out of its own range
    return Row(figure, mean, low, high, unit, target, better, _met(mean, better, target))


def median_row(
    figure: str, values: Sequence[float], unit: str, better: Better, target: float | None = None
) -> Row:
    """The median held against the target; low, high: the quartiles, or all of fewer than eight.

    For timings and their ratios, where a few repetitions are far off for reasons of their own.

    Raises:
        ValueError: no value, or one that is not finite.
    """
    if not values or not all(math.isfinite(v) for v in values):
        raise ValueError(f"{figure}: expected finite values; found {list(values)}")
    middle = statistics.median(values)
    low, high = min(values), max(values)
    if len(values) >= MANY:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        low, high = min(low, middle), max(high, middle)  # rounding, as above
    return Row(figure, middle, low, high, unit, target, better, _met(middle, better, target))


def _met(measured: float, better: Better, target: float | None) -> bool | None:
    if target is None:
        return None
    return measured >= target if better == "higher" else measured <= target


def format_table(rows: Sequence[Row]) -> str:
    """Aligned columns, one line for each row; the range is left out where there is none."""
    cells = [("figure", "measured", "range", "unit", "target", "met")]
    for r in rows:
        spread = f"{_number(r.low, r.unit)} to {_number(r.high, r.unit)}" if r.low < r.high else ""
        sign = ">=" if r.better == "higher" else "<="
        target = "" if r.target is None else f"{sign} {r.target:g}"
        met = {True: "yes", False: "NO", None: ""}[r.met]
        cells.append((r.figure, _number(r.measured, r.unit), spread, r.unit, target, met))
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def _number(value: float, unit: str) -> str:
    decimals = {"s": 1, "bytes": 0, "ms": 1, "GB/s": 2}.get(unit, 3)
    if unit in ("ratio", "absolute") and 0 < abs(value) < 0.01:
        return f"{value:.2g}"  # these may be as small as they like
    return f"{value:.{decimals}f}"


def write_table(
    name: str, rows: Sequence[Row], out: Path, extra: Mapping[str, Any] | None = None
) -> Path:
    """Writes out/NAME.json: machine, date, commit, rows, and what `extra` adds."""
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": machine(),
        "date": now(),
        "commit": commit(),
        **(extra or {}),
        "rows": [asdict(r) for r in rows],
    }
    path = out / f"{name}.json"
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(path, text.encode() + b"\n")
    return path
