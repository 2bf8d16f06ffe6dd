"""One file of sensor readings: times, channels, labels, groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_pslora.data.clock import clock_value, find_time
from edge_pslora.data.columns import (
    LABEL_NAMES,
    column_positions,
    find_delimiter,
    header_names,
    is_missing,
    number,
)
from edge_pslora.data.label_column import LabelColumn, RawLabel
from edge_pslora.data.labels import FLOAT32_MAX, label_problem
from edge_pslora.data.lines import check_text
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.source import open_input, shown
from edge_pslora.data.spool import Numbers
from edge_pslora.data.table import records
from edge_pslora.data.tally import Tally
from edge_pslora.errors import DataError

TABLE_SUFFIXES = (".csv", ".tsv", ".data", ".txt")


@dataclass(frozen=True)
class Readings:
    """R rows. times: float64 [R], dated: they were dates (seconds then); values: float32 [R, C].

    codes: int32 [R] into names, the labels; groups: int64 [R] or None; label_source: for people.
    """

    times: npt.NDArray[np.float64]
    dated: bool
    time_name: str
    values: npt.NDArray[np.float32]
    channels: tuple[str, ...]
    codes: npt.NDArray[np.int32]
    names: tuple[RawLabel, ...]
    groups: npt.NDArray[np.int64] | None
    label_source: str


@dataclass(frozen=True)
class _Places:
    names: tuple[str, ...]
    time: int
    label: int | None
    group: int | None
    channels: tuple[int, ...]


@dataclass
class _Rows:
    times: Numbers = field(default_factory=lambda: Numbers("d"))
    values: Numbers = field(default_factory=Numbers)
    groups: Numbers = field(default_factory=lambda: Numbers("q"))
    labels: LabelColumn = field(default_factory=LabelColumn)
    known_groups: dict[str, int] = field(default_factory=dict)
    dated: bool | None = None


def _one(wanted: str | None, names: Sequence[str], flag: str, where: str) -> int | None:
    return None if wanted is None else column_positions([wanted], names, flag, where)[0]


def _places(names: tuple[str, ...], label: str | None, options: ReadOptions, where: str) -> _Places:
    time = _one(options.time_column, names, "--time-column", where)
    time = find_time(names, where) if time is None else time
    group = _one(options.group_column, names, "--group-column", where)
    given = _one(options.label_column, names, "--label-column", where)
    lowered = [name.casefold() for name in names]
    if given is None:
        given = next((lowered.index(name) for name in LABEL_NAMES if name in lowered), None)
    if given is None and label is None:
        raise DataError(
            where,
            expected="a label column, or a folder for each class",
            found="columns " + shown(", ".join(names)),
            remedy="name it with --label-column, or lay the files out as FOLDER/class/file.csv",
        )
    wanted = column_positions(options.feature_columns, names, "--feature-columns", where)
    ignored = [n for n in options.ignore_columns if n in names]
    others = {time, group, given, *column_positions(ignored, names, "--ignore-columns", where)}
    channels = wanted or [i for i in range(len(names)) if i not in others]
    if not channels or others & set(channels):
        raise DataError(
            where,
            expected="channels beside time, label and group",
            found="none" if not channels else shown(names[(others & set(channels)).pop() or 0]),
            remedy="change --feature-columns",
        )
    return _Places(names, time, given, group, tuple(channels))


def _take(
    cells: list[str], places: _Places, label: str | None, rows: _Rows, options: ReadOptions
) -> str | None:
    """Adds one reading; a reason if it cannot be used."""
    if len(cells) != len(places.names):
        return f"{len(cells)} columns, not {len(places.names)}"
    time = clock_value(cells[places.time])
    if time is None or (rows.dated is not None and time[1] != rows.dated):
        return "no time"
    values: list[float] = []
    for place in places.channels:
        value = number(cells[place])
        if value is None or abs(value) > FLOAT32_MAX or value in options.missing:
            return f"no number in channel {shown(places.names[place], 40)!r}"
        values.append(float(value))
    found: RawLabel = label or ""
    if places.label is not None:
        cell = cells[places.label]
        as_number = number(cell)
        if as_number is None and is_missing(cell):
            return "no label"
        found = cell if as_number is None else as_number
        problem = label_problem(found)
        if problem is not None:
            return problem
    if places.group is not None:
        group = cells[places.group]
        rows.groups.extend([rows.known_groups.setdefault(group, len(rows.known_groups))])
    rows.dated = time[1]
    rows.times.extend([time[0]])
    rows.values.extend(values)
    rows.labels.append(found)
    return None


def read_readings(
    path: Path, source: Path, label: str | None, options: ReadOptions, tally: Tally
) -> Readings:
    """Reads one file; bad rows go to `tally`. label: of its folder, used where no column has one.

    Raises:
        DataError: no table, no such columns, or no good row.
    """
    where = shown(path)
    if path.suffix.casefold() not in TABLE_SUFFIXES:
        raise DataError(
            where,
            expected="recordings for --window, " + ", ".join(TABLE_SUFFIXES),
            found=f"a {shown(path.suffix, 20)} file" if path.suffix else "a file without a suffix",
            remedy="leave --window out, or give the recordings as .csv",
        )
    name = shown(path.name if path == source else path.relative_to(source))
    places: _Places | None = None
    rows = _Rows()
    with open_input(path) as stream:
        delimiter = find_delimiter(check_text(path, stream, options.max_bytes))
        for line, span, cells in records(stream, delimiter, name, tally):
            if places is None:
                names, has_header = header_names(cells, options, where)
                places = _places(names, label, options, where)
                if has_header:
                    continue
            problem = _take(cells, places, label, rows, options)
            if problem is not None:
                tally.reject(tally.bad, f"{name}:{line}", problem, weight=span)
    if places is None or not len(rows.labels):
        raise tally.no_rows()
    every = np.arange(len(rows.labels), dtype=np.int64)
    labels, codes = rows.labels.distinct(every)
    column = None if places.label is None else f"'{shown(places.names[places.label], 40)}'"
    return Readings(
        times=rows.times.rows(1)[:, 0],
        dated=bool(rows.dated),
        time_name=places.names[places.time],
        values=rows.values.rows(len(places.channels)),
        channels=tuple(places.names[i] for i in places.channels),
        codes=codes,
        names=tuple(labels),
        groups=None if places.group is None else rows.groups.rows(1)[:, 0],
        label_source="the folders' names" if column is None else column,
    )
