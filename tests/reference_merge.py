"""The merge rules of METHOD.md, transcribed literally: T updates at once, one element at a time.

Float64 scalars in Python loops, no numpy tricks: slow on purpose, the fast code is held to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def merge_all(rule: str, deltas: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    """M_T for the updates D_1 ... D_T of one tensor (equal shapes, T >= 1), in the order given."""
    shape = deltas[0].shape
    columns = [np.asarray(delta, dtype=np.float64).ravel().tolist() for delta in deltas]
    merged = [_MERGE_ONE[rule](list(values)) for values in zip(*columns, strict=True)]
    return np.array(merged, dtype=np.float64).reshape(shape)


def _total(updates: list[float]) -> float:
    return math.fsum(updates)


def _mean(updates: list[float]) -> float:
    return math.fsum(updates) / len(updates)


def _largest(updates: list[float]) -> float:
    """Max-|.| over all T at once; among equals the oldest wins."""
    best = max(abs(value) for value in updates)
    return next(value for value in updates if abs(value) == best)


def _largest_running_sum(updates: list[float]) -> float:
    """Max-|.| over 0, D_1, D_1 + D_2, ... (the zero is M_0: nothing learned yet)."""
    sums = [0.0]
    for value in updates:
        sums.append(sums[-1] + value)
    return _largest(sums)


def _constructive(updates: list[float]) -> float:
    """Accept an update where it does not shrink what is there; sequential by definition."""
    merged = 0.0
    for value in updates:
        if abs(merged + value) >= abs(merged):
            merged = merged + value
    return merged


_MERGE_ONE = {
    "none": _total,
    "average": _mean,
    "max_magnitude": _largest,
    "cumulative": _largest_running_sum,
    "constructive": _constructive,
}


def literal_step(
    rule: str, merged: npt.NDArray[Any], delta: npt.NDArray[Any], session: int
) -> npt.NDArray[Any]:
    """One step of the fold as METHOD.md writes it, rounded where it says so: equal to the bit."""
    dtype = np.result_type(np.float32, *(a.dtype for a in (merged, delta) if a.dtype == np.float64))
    older, newer = merged.astype(dtype), delta.astype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        if rule == "none":
            return older + newer
        if rule == "average":
            return older + (newer - older) / dtype.type(session)
        if rule == "constructive":
            total = older + newer
            return np.where(np.abs(total) >= np.abs(older), total, older)
        return np.where(np.abs(newer) > np.abs(older), newer, older)
