"""Tables (.csv, .tsv, .data, .txt): numbers with a label, or a text column with a label."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from edge_pslora.data.columns import Columns, find_columns, find_delimiter, is_missing, number
from edge_pslora.data.label_column import LabelColumn, RawLabel
from edge_pslora.data.label_names import names_for
from edge_pslora.data.labels import (
    FLOAT32_MAX,
    joined_labels,
    label_problem,
    resolve,
    split_cell,
    unprintable,
)
from edge_pslora.data.lines import check_text, read_lines
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.source import open_input, shown
from edge_pslora.data.spool import Numbers, Texts, take_rows, take_texts
from edge_pslora.data.tally import Part, Tally
from edge_pslora.data.text_rows import language_samples
from edge_pslora.data.types import Samples
from edge_pslora.errors import DataError


@dataclass
class _Rows:
    """Good rows so far, and how many cells of each feature were no numbers."""

    values: Numbers = field(default_factory=Numbers)
    texts: Texts = field(default_factory=Texts)
    labels: LabelColumn = field(default_factory=LabelColumn)
    lines: array[int] = field(default_factory=lambda: array("q"))
    not_numbers: dict[int, int] = field(default_factory=dict)
    example: dict[int, str] = field(default_factory=dict)


def records(
    stream: BinaryIO, delimiter: str, name: str, tally: Tally
) -> Iterator[tuple[int, int, list[str]]]:
    """First line, number of lines and stripped cells of each record; damaged ones go to `tally`."""
    first = last = 0

    def feed() -> Iterator[str]:
        nonlocal first, last
        for line_number, line in read_lines(stream, name, tally):
            first, last = first or line_number, line_number
            yield line

    # The field limit of the csv module (128 KiB) bounds what a quote without its end can swallow.
    reader = csv.reader(feed(), delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        first = 0
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            span = f"{name}:{first}" if first == last else f"{name}:{first}-{last}"
            tally.reject(first, span, f"not CSV ({error})", weight=last - first + 1)
            continue
        if any(cells):
            yield first, last - first + 1, cells


def _numbers(
    cells: list[str], columns: Columns, missing: frozenset[float], rows: _Rows, *, quote: bool
) -> str | None:
    """Appends the feature values [F] of one row; a reason if one of them is not a number."""
    values: list[float] = []
    for i in columns.features:
        cell = cells[i]
        value = number(cell)
        if (value is None and is_missing(cell)) or value in missing:
            values.append(float("nan"))
        elif value is None:
            rows.not_numbers[i] = rows.not_numbers.get(i, 0) + 1
            rows.example.setdefault(i, cell)
            what = f"{shown(cell, 40)!r}, not a number" if quote else "no number"
            return f"column {shown(columns.names[i], 40)!r} holds {what}"
        elif abs(value) > FLOAT32_MAX:
            return f"column {shown(columns.names[i], 40)!r} holds a number beyond 32 bits"
        else:
            values.append(float(value))
    rows.values.extend(values)
    return None


def _label(
    cell: str, options: ReadOptions, missing: frozenset[float]
) -> tuple[RawLabel, str | None]:
    """The label in a cell, and why it cannot be used."""
    if options.task_type == "multilabel":
        joined = joined_labels(split_cell(cell))
        return joined or "", None if joined is not None else "a label that cannot be used"
    value = number(cell)
    if (value is None and is_missing(cell)) or value in missing:
        return "", "no label"
    label: RawLabel = cell if value is None else value
    return label, label_problem(label)


def _take(
    cells: list[str],
    line: int,
    columns: Columns,
    missing: frozenset[float],
    rows: _Rows,
    options: ReadOptions,
) -> str | None:
    """Adds one record to `rows`; a reason if it cannot be used."""
    if len(cells) != len(columns.names):
        return f"{len(cells)} columns, not {len(columns.names)}"
    label, problem = (
        ("", None) if columns.label is None else _label(cells[columns.label], options, missing)
    )
    if problem is None and columns.text is not None:
        text = cells[columns.text]
        problem = unprintable(text) if text else "empty text"
        if problem is None:
            rows.texts.append(text)
    elif problem is None:
        problem = _numbers(cells, columns, missing, rows, quote=options.keep_samples)
    if problem is None:
        rows.labels.append(label)
        rows.lines.append(line)
    return problem


def _check_features(rows: _Rows, columns: Columns, tally: Tally) -> None:
    """Names the column when it is the reason for too many bad rows."""
    total = len(rows.labels) + tally.bad
    worst = max(rows.not_numbers, key=lambda i: rows.not_numbers[i], default=None)
    if worst is None or rows.not_numbers[worst] <= tally.options.max_bad_fraction * total:
        return
    raise DataError(
        tally.source,
        expected=f"numbers in the feature column {shown(columns.names[worst], 60)!r}",
        found=f"text such as {shown(rows.example[worst], 40)!r}",
        remedy=f"encode it, or --ignore-columns {worst}; if it is the label: --label-column {worst}",
    )


def read_table(path: Path, options: ReadOptions) -> Part:
    """Reads a table. Features: float32 [N, F], NaN = missing; or N texts where there is a text
    column (options.text_column, or a header cell "text").

    Raises:
        DataError: no such columns, a feature column of text, too many bad rows.
    """
    name, tally, rows = shown(path.name), Tally(shown(path), options), _Rows()
    missing, columns = frozenset(options.missing), None
    with open_input(path) as stream:
        delimiter = find_delimiter(check_text(path, stream, options.max_bytes))
        try:
            for line, span, cells in records(stream, delimiter, name, tally):
                if columns is None:
                    columns = find_columns(cells, options, shown(path))
                    if columns.has_header:
                        continue
                problem = _take(cells, line, columns, missing, rows, options)
                if problem is not None:
                    tally.reject(line, f"{name}:{line}", problem, weight=span)
        except DataError:
            if columns is not None:
                _check_features(rows, columns, tally)
            raise
    if columns is None:
        raise tally.no_rows()
    _check_features(rows, columns, tally)
    if not len(rows.labels):
        raise tally.no_rows()
    return _part(path, columns, rows, tally, options)


def _part(path: Path, columns: Columns, rows: _Rows, tally: Tally, options: ReadOptions) -> Part:
    names = names_for(rows.labels, options, path) if columns.label is not None else None
    note = columns.note + ("" if names is None else ", with the names in labels.json")
    if columns.label is None:
        language = language_samples(rows.texts.sequence())
        return Part(language, tally.close(len(language)), (note,))
    targets = resolve(rows.labels, options, shown(path), table=True, names=names)
    for position, reason in targets.dropped:
        line = rows.lines[position]
        tally.reject(line, f"{shown(path.name)}:{line}", reason)
    if columns.text is not None:
        texts = rows.texts.sequence()
        if len(targets.kept) < len(texts):
            texts = take_texts(texts, targets.kept)
        samples = Samples("text", targets.task_type, texts, targets.values)
    else:
        inputs = take_rows(rows.values.rows(len(columns.features)), targets.kept)
        samples = Samples("table", targets.task_type, inputs, targets.values, columns.feature_names)
    return Part(samples, tally.close(len(samples)), (note,))
