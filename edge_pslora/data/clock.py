"""The time column of a recording: which one it is, its unit, and its values in seconds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from edge_pslora.data.columns import number
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.source import shown
from edge_pslora.errors import DataError

DATE = "date and time"
PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9, DATE: 1.0}
_NAMES = {"time", "timestamp", "timestamps", "ts", "t", "datetime", "date", "elapsed", "clock"}
_SUFFIX = re.compile(r"[ _\[(\-.]?(s|sec|seconds|ms|millis|us|micros|ns|nanos)[\])]?$")
_UNITS = {"sec": "s", "seconds": "s", "millis": "ms", "micros": "us", "nanos": "ns"}
# Since 1970, up to the year 5138: so large is the time of day in each unit.
_EPOCH = (("s", 1e8, 1e11), ("ms", 1e11, 1e14), ("us", 1e14, 1e17), ("ns", 1e17, 1e20))
_LATEST = _EPOCH[-1][2]  # beyond it nothing is a time, in whatever unit
_PLAUSIBLE_STEP = (1e-5, 3600.0)  # seconds


def is_time_name(name: str) -> bool:
    """Whether a column of this name holds the time, if the user does not say which does."""
    lowered = name.casefold()
    base = _SUFFIX.sub("", lowered)
    known = lowered in _NAMES or lowered in _UNITS or base in _NAMES
    return known or (base != lowered and base.startswith("time"))


def find_time(names: Sequence[str], where: str) -> int:
    """Raises DataError: no column has such a name."""
    for place, name in enumerate(names):
        if is_time_name(name):
            return place
    raise DataError(
        where,
        expected="a time column for --window",
        found="columns " + shown(", ".join(names)),
        remedy="name it, or its index, with --time-column",
    )


def clock_value(cell: str) -> tuple[float, bool] | None:
    """The time in a cell, and whether it is a date; None if it is no time."""
    value = number(cell)
    if value is not None:
        return (float(value), False) if abs(value) <= _LATEST else None
    try:
        date = datetime.fromisoformat(cell)
    except ValueError:
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp(), True


def guess_unit(times: npt.NDArray[np.float64], name: str, options: ReadOptions) -> str:
    """s, ms, us or ns, of the first recording's time column.

    What is looked at, in this order: the option, the name (time_ms), the size (a time since 1970), the
    wanted rate, the usual step.
    """
    if options.time_unit is not None:
        return options.time_unit
    lowered = name.casefold()
    if lowered in _UNITS:
        return _UNITS[lowered]
    found = _SUFFIX.search(lowered)
    if found is not None and len(lowered) > len(found[0]) and not found[0][0].isalpha():
        return _UNITS.get(found[1], found[1])
    steps = np.diff(times)
    step = float(np.median(steps[steps > 0])) if np.any(steps > 0) else 1.0
    size = abs(float(times[0]))
    for unit, low, high in _EPOCH:
        in_seconds = step / PER_SECOND[unit]
        if low <= size < high and _PLAUSIBLE_STEP[0] <= in_seconds <= _PLAUSIBLE_STEP[1]:
            return unit
    if options.rate_hz is not None:
        rate = options.rate_hz
        units = ("s", "ms", "us", "ns")
        return min(units, key=lambda unit: abs(np.log(step / PER_SECOND[unit] * rate)))
    if step < 1 or np.any(times % 1 != 0):
        return "s"
    return "ms" if step < 1e3 else "us" if step < 1e6 else "ns"
