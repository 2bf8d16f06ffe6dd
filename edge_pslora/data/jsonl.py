"""JSON lines with a text and a label: {"text": "...", "label": "..."} on each line."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from edge_pslora.data.labels import RawLabel, label_problem, resolve, unprintable
from edge_pslora.data.lines import check_text, read_lines
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.source import open_input, shown
from edge_pslora.data.tally import Part, Tally
from edge_pslora.data.types import Samples
from edge_pslora.errors import DataError


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key given twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# A decoder of our own: json.loads has no such settings to share between lines.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


@dataclass
class _Rows:
    texts: list[str] = field(default_factory=list)
    labels: list[RawLabel] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    objects: int = 0
    first_keys: tuple[str, ...] = ()
    absent: dict[str, int] = field(default_factory=dict)


def _parse(line: str) -> dict[str, Any] | str:
    """The object on the line, or why there is none."""
    try:
        value = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg}, character {error.colno})"
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:
        return f"not strict JSON ({shown(str(error), 60)})"
    return value if isinstance(value, dict) else "not a JSON object"


def _take(row: dict[str, Any], line: int, text_key: str, label_key: str, rows: _Rows) -> str | None:
    """Adds one object to `rows`; a reason if it cannot be used."""
    rows.objects += 1
    rows.first_keys = rows.first_keys or tuple(row)
    for key in (text_key, label_key):
        if key not in row:
            rows.absent[key] = rows.absent.get(key, 0) + 1
            return f"no {shown(key, 40)!r}"
    text, label = row[text_key], row[label_key]
    if not isinstance(text, str):
        return f"{shown(text_key, 40)!r} is not text"
    if not text.strip():
        return "empty text"
    if not isinstance(label, str | int | float):
        return "a label that is neither text nor a number"
    problem = unprintable(text) or label_problem(label)
    if problem is None:
        rows.texts.append(text)
        rows.labels.append(label)
        rows.lines.append(line)
    return problem


def read_jsonl(path: Path, options: ReadOptions) -> Part:
    """Reads a .jsonl file as a text data set.

    Raises:
        DataError: no such columns, too many bad rows, or labels that do not fit options.task_type.
    """
    text_key, label_key = options.text_column or "text", options.label_column or "label"
    name, tally, rows = shown(path.name), Tally(shown(path), options), _Rows()
    with open_input(path) as stream:
        check_text(path, stream, options.max_bytes)
        for number, line in read_lines(stream, name, tally):
            if not line.strip():
                continue
            row = _parse(line)
            problem = row if isinstance(row, str) else _take(row, number, text_key, label_key, rows)
            if problem is not None:
                tally.reject(number, f"{name}:{number}", problem)
    for key, flag in ((text_key, "--text-column"), (label_key, "--label-column")):
        if rows.objects and rows.absent.get(key) == rows.objects:
            raise DataError(
                shown(path),
                expected=f"a column {shown(key, 40)!r}",
                found="columns " + (shown(", ".join(rows.first_keys)) or "none"),
                remedy=f"name the right one with {flag}",
            )
    if not rows.labels:
        raise tally.no_rows()
    targets = resolve(rows.labels, options, shown(path))
    for position, reason in targets.dropped:
        tally.reject(rows.lines[position], f"{name}:{rows.lines[position]}", reason)
    samples = Samples(
        "text", targets.task_type, [rows.texts[i] for i in targets.kept], targets.values
    )
    return Part(samples, tally.close(len(samples)))
