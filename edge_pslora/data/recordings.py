"""Sensor recordings (tables with a time column), cut into windows of equally spaced readings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_pslora.data.clock import PER_SECOND, guess_unit
from edge_pslora.data.label_column import LabelColumn
from edge_pslora.data.labels import resolve
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.readings import Readings, read_readings
from edge_pslora.data.source import shown
from edge_pslora.data.spool import Numbers, take_rows
from edge_pslora.data.tally import Part, Tally
from edge_pslora.data.types import Samples
from edge_pslora.errors import DataError, UsageError

ALIKE = 0.8  # share of a window's readings that must have its label
MAX_WINDOW_VALUES = 1 << 22
_LEAST_STEP = 1e-9  # seconds from one reading to the next
_WINDOWS_AT_A_TIME = 64
_ROWS_AT_A_TIME = 1 << 18


@dataclass
class _Grid:
    """Readings per window, readings from one window's start to the next's, readings per second."""

    length: int
    hop: int
    rate: float


@dataclass
class _Windows:
    """What was cut so far."""

    values: Numbers = field(default_factory=Numbers)
    labels: LabelColumn = field(default_factory=LabelColumn)
    mixed: int = 0
    recordings: int = 0
    readings: int = 0
    longest: float = 0.0  # seconds


def read_recordings(
    source: Path, files: Sequence[tuple[Path, str | None]], options: ReadOptions
) -> Part:
    """Windows float32 [N, T, channels] of all files; each file may come with its folder's label.

    Resampled by linear interpolation. Nothing is bridged that is longer than a window, and no window
    holds rows of two files or two groups.

    Raises:
        DataError: no time column, other columns than in the first file, no window, too many bad rows.
    """
    assert options.window_seconds is not None
    tally, windows = Tally(shown(source), options), _Windows()
    first: Readings | None = None
    grid: _Grid | None = None
    unit = ""
    for path, label in files:
        readings = read_readings(path, source, label, options, tally)
        if first is None or grid is None:
            first = readings
            unit = "date and time" if readings.dated else ""
            unit = unit or guess_unit(readings.times, readings.time_name, options)
            grid = _grid(readings, PER_SECOND[unit], options)
        _require_alike(first, readings, path, source)
        _cut(readings, PER_SECOND[unit], grid, options, windows)
    if first is None or grid is None:
        raise tally.no_rows()
    if not len(windows.labels):
        raise DataError(
            shown(source),
            expected=f"recordings of {options.window_seconds:g} s or longer, with one label each",
            found=f"{windows.mixed} windows of mixed labels"
            if windows.mixed
            else f"at most {windows.longest:.3g} s without a gap (time in {unit})",
            remedy="choose a shorter --window, or say what the time is in with --time-unit",
        )
    return _part(source, first, unit, grid, windows, tally, options)


def _part(
    source: Path,
    first: Readings,
    unit: str,
    grid: _Grid,
    windows: _Windows,
    tally: Tally,
    options: ReadOptions,
) -> Part:
    targets = resolve(windows.labels, options, shown(source))
    values = windows.values.rows(grid.length * len(first.channels))
    values = values.reshape(-1, grid.length, len(first.channels))
    samples = Samples(
        "array", targets.task_type, take_rows(values, targets.kept), targets.values, first.channels
    )
    names = ", ".join(shown(name, 30) for name in first.channels[:12])
    notes = [
        f"{windows.readings} readings of {len(first.channels)} channels ({names}) in "
        f"{windows.recordings} recordings, time in {unit} from '{shown(first.time_name, 40)}', "
        f"label from {first.label_source}",
        f"{len(windows.labels)} windows of {grid.length} readings, a new one every {grid.hop}, "
        f"{grid.rate:g} a second",
    ]
    if windows.mixed:
        notes.append(f"{windows.mixed} windows set aside: less than 80 % of one label")
    if grid.hop < grid.length and options.task_type != "regression":
        notes.append("windows overlap: a valid part of other recordings judges more strictly")
    # bad rows are counted among rows, not among windows
    return Part(samples, tally.close(windows.readings), tuple(notes))


def _grid(readings: Readings, per_second: float, options: ReadOptions) -> _Grid:
    assert options.window_seconds is not None
    rate = options.rate_hz
    if rate is None:
        steps = np.diff(readings.times[:_ROWS_AT_A_TIME]) / per_second
        steps = steps[steps > 0]
        measured = 1 / max(float(np.median(steps)), _LEAST_STEP) if len(steps) else 1.0
        rate = float(round(measured)) if measured >= 1 else measured
    length = round(options.window_seconds * rate)
    hop = max(1, round((options.hop_seconds or options.window_seconds) * rate))
    if length < 2 or length * len(readings.channels) > MAX_WINDOW_VALUES:
        raise UsageError(
            "--window",
            expected="a window of two readings or more, and at most 4 million numbers",
            found=f"{length} readings ({options.window_seconds:g} s at {rate:g} a second)",
            remedy="change --window or --rate",
        )
    return _Grid(length, hop, rate)


def _require_alike(first: Readings, other: Readings, path: Path, source: Path) -> None:
    if first.channels != other.channels or first.dated != other.dated:
        raise DataError(
            shown(path),
            expected="the channels of the first file, " + shown(", ".join(first.channels), 100),
            found=shown(", ".join(other.channels), 100),
            remedy=f"move it out of {shown(source.name, 60)}, or choose with --feature-columns",
        )


def _cut(
    readings: Readings, per_second: float, grid: _Grid, options: ReadOptions, windows: _Windows
) -> None:
    """Adds the windows of one file."""
    windows.readings += len(readings.times)
    for rows in _groups(readings):
        times = readings.times if rows is None else readings.times[rows]
        edges = _breaks(times, per_second, options.window_seconds or 0.0)
        for start, end in pairwise(edges):
            windows.recordings += 1
            chosen = slice(start, end) if rows is None else rows[start:end]
            part = replace(
                readings,
                times=(times[start:end] - times[start]) / per_second,
                values=readings.values[chosen],
                codes=readings.codes[chosen],
            )
            _cut_part(part, grid, options, windows)


def _groups(readings: Readings) -> list[npt.NDArray[np.int64] | None]:
    """The rows of each group in order; None: all rows."""
    if readings.groups is None:
        return [None]
    order = np.argsort(readings.groups, kind="stable").astype(np.int64)
    edges = np.flatnonzero(np.diff(readings.groups[order])) + 1
    return list(np.split(order, edges))


def _breaks(times: npt.NDArray[np.float64], per_second: float, longest: float) -> list[int]:
    """Where stretches without a gap and without a step back start, and where the last one ends."""
    edges = [0]
    for start in range(0, len(times) - 1, _ROWS_AT_A_TIME):
        steps = np.diff(times[start : start + _ROWS_AT_A_TIME + 1]) / per_second
        edges += (np.flatnonzero((steps < 0) | (steps > longest)) + start + 1).tolist()
    return [*edges, len(times)]


def _cut_part(part: Readings, grid: _Grid, options: ReadOptions, windows: _Windows) -> None:
    """Windows of one stretch; part.times are seconds from its start."""
    duration = float(part.times[-1])
    windows.longest = max(windows.longest, duration)
    # a hair more: 99 steps of 1/50 s are not exactly 1.98 s
    steps = int(duration * grid.rate + 1e-6)
    count = (steps - (grid.length - 1)) // grid.hop + 1 if steps >= grid.length - 1 else 0
    for begin in range(0, count, _WINDOWS_AT_A_TIME):
        starts = np.arange(begin, min(begin + _WINDOWS_AT_A_TIME, count)) * grid.hop
        at = (starts[:, None] + np.arange(grid.length)) / grid.rate  # [W, T]
        low = max(0, int(np.searchsorted(part.times, at[0, 0], "right")) - 1)
        high = int(np.searchsorted(part.times, at[-1, -1], "left")) + 1
        times, values = part.times[low:high], part.values[low:high]
        resampled = np.stack(
            [np.interp(at.ravel(), times, channel) for channel in values.T], axis=-1
        ).reshape(len(starts), grid.length, -1)
        nearest = np.clip(np.searchsorted(times, at, "right") - 1, 0, None) + low
        for window, codes in zip(resampled, part.codes[nearest], strict=True):
            label = _label_of(codes, part, options)
            if label is None:
                windows.mixed += 1
                continue
            windows.labels.append(label)
            windows.values.extend(window.astype(np.float32).ravel().tolist())


def _label_of(
    codes: npt.NDArray[np.int32], part: Readings, options: ReadOptions
) -> str | int | float | None:
    """The window's label; None if too few readings have it."""
    if options.task_type == "regression":
        numbers = [part.names[code] for code in codes]
        if not all(isinstance(n, int | float) for n in numbers):
            return "text"  # which `resolve` refuses by its name
        return float(np.mean([float(n) for n in numbers]))
    counts = np.bincount(codes)
    best = int(counts.argmax())
    return part.names[best] if counts[best] >= ALIKE * len(codes) else None
