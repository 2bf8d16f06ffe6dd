"""Merge rules: one tensor, one session, numpy only (METHOD.md, "Merge", Eq. 5 and its table).

A streaming fold: M_0 = 0, then M_t = merge_step(rule, M_{t-1}, D_t, t) for t = 1, 2, ... needs no
stored adapters. max_magnitude and cumulative folds equal the T-way merge element for element.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edge_pslora.config import MERGE_RULES, MergeRule
from edge_pslora.errors import EdgePsloraError, UsageError

Floats = npt.NDArray[np.floating[Any]]


def merge_step(
    rule: MergeRule, merged: npt.NDArray[Any], delta: npt.NDArray[Any], session: int
) -> Floats:
    """M_t from M_{t-1} and the update of session t; the arguments are never changed.

    Args:
        rule: none: M + D. average: running mean of the D_i, M + (D - M) / t.
            max_magnitude: D where |D| > |M|, else M (ties keep the older).
            cumulative: max_magnitude over running sums; `delta` is then R_t = D_1 + ... + D_t.
            constructive: M + D where |M + D| >= |M|, else M.
        merged: M_{t-1}, any shape; zeros before the first session.
        delta: D_t (R_t for cumulative), the same shape.
        session: t, counted from 1. Only `average` depends on it.

    Returns:
        M_t, a new array, float32 (float64 if an argument is float64; halves are upcast).

    Raises:
        UsageError: an unknown rule.
        EdgePsloraError: shapes differ, a value is not finite, or the sum overflows.
    """
    if rule not in MERGE_RULES:
        raise UsageError(
            "merge rule",
            expected=", ".join(MERGE_RULES),
            found=repr(rule),
            remedy="choose one of these",
        )
    if session < 1:
        raise _error("session", "a count from 1", str(session), "count sessions from 1")
    if merged.shape != delta.shape:
        raise _error(
            "merge", f"equal shapes, {merged.shape}", str(delta.shape), "merge like with like"
        )
    older = _as_float(merged, "merged delta", delta)
    newer = _as_float(delta, "delta", merged)
    with np.errstate(over="ignore", invalid="ignore"):
        result = _apply(rule, older, newer, session)
    _require_finite(result, "sum of updates")
    return result


def _apply(rule: MergeRule, older: Floats, newer: Floats, session: int) -> Floats:
    result: Floats
    if rule == "none":
        result = older + newer
    elif rule == "average":
        result = older + (newer - older) / older.dtype.type(session)
    elif rule == "constructive":
        total = older + newer
        result = np.where(np.abs(total) >= np.abs(older), total, older)
    else:  # max_magnitude, and cumulative with running sums as `newer`
        result = np.where(np.abs(newer) > np.abs(older), newer, older)
    return result


def _as_float(values: npt.NDArray[Any], name: str, other: npt.NDArray[Any]) -> Floats:
    """`values` in the dtype of the maths: at least float32, since halves lose small updates."""
    dtype = np.result_type(np.float32, *(a.dtype for a in (values, other) if a.dtype == np.float64))
    converted: Floats = values.astype(dtype, copy=False)
    _require_finite(converted, name)
    return converted


def _require_finite(values: Floats, name: str) -> None:
    bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if bad:
        raise _error(
            name,
            "finite values only",
            f"{bad} of {values.size} not finite",
            "lower the learning rate or leave this adapter out",
        )


def _error(where: str, expected: str, found: str, remedy: str) -> EdgePsloraError:
    return EdgePsloraError(where, expected=expected, found=found, remedy=remedy)
