"""Merge rules: one tensor, one session, numpy only (METHOD.md, "Merge", Eq. 5 and its table).

A streaming fold: M_0 = 0, then M_t = merge_step(rule, M_{t-1}, D_t, t) for t = 1, 2, ... needs no
stored adapters. max_magnitude and cumulative folds equal the T-way merge element for element.

One pass over blocks that stay in the second-level cache. No rule branches on a value: with signs as
they come, np.where and copyto(where=) lose 1 to 4 ns an entry to mispredicted branches; comparing
and blending the bit patterns of floats as integers takes 6 or 7 vector instructions instead, and
gives the same bits (float magnitudes are ordered as the integers that hold them).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edge_pslora.config import MERGE_RULES, MergeRule
from edge_pslora.core.float_bits import Bits, bits_of, is_finite
from edge_pslora.errors import EdgePsloraError, UsageError

Floats = npt.NDArray[np.floating[Any]]
Array = npt.NDArray[Any]

_CACHE_BYTES = 3 << 18  # what a block's inputs, output and scratch take together
_LINE = 64
_SCRATCH = {"none": 0, "average": 1, "constructive": 2, "max_magnitude": 2, "cumulative": 2}


def merge_step(rule: MergeRule, merged: Array, delta: Array, session: int) -> Floats:
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
    out: Floats = np.empty(merged.shape, dtype=maths_dtype(merged.dtype, delta.dtype))
    merge_into(out, rule, merged, delta, session)
    return out


def merge_into(out: Array, rule: MergeRule, merged: Array, delta: Array, session: int) -> None:
    """merge_step into `out`, which may be `merged` itself; what it holds after an error is void.

    Args:
        out: the shape of `merged`, the dtype of merge_step's result, C-contiguous, no memory
            in common with `delta`.
    """
    _check_arguments(out, rule, merged, delta, session)
    bits = bits_of(out.dtype)
    target, older, newer = out.reshape(-1), merged.reshape(-1), delta.reshape(-1)
    upcast = not merged.dtype == delta.dtype == out.dtype
    size = max(1, _CACHE_BYTES // (out.itemsize * (3 + _SCRATCH[rule])))
    spare = _scratch(_SCRATCH[rule], min(size, out.size), out.dtype)
    finite = True
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, out.size, size):
            last = first + size
            old, new, block = older[first:last], newer[first:last], target[first:last]
            if upcast:
                old, new = old.astype(out.dtype), new.astype(out.dtype)
            if last > out.size:
                spare = [part[: len(block)] for part in spare]
            if rule == "none":
                np.add(old, new, block)
            elif rule == "average":
                _averaged(old, new, block, spare, session)
            elif rule == "constructive":
                _grown(old, new, block, spare, bits)
            else:  # max_magnitude, and cumulative with running sums as `newer`
                _larger(old, new, block, spare, bits)
            # under every rule a NaN or infinity that goes in comes out as one
            finite &= is_finite(block, bits)
    if not finite:
        raise _not_finite(out, merged, delta)


def maths_dtype(*dtypes: np.dtype[Any]) -> np.dtype[Any]:
    """At least float32, since halves lose small updates; float64 if one of `dtypes` is."""
    return np.dtype(np.float64 if any(dtype == np.float64 for dtype in dtypes) else np.float32)


def _scratch(count: int, size: int, dtype: np.dtype[Any]) -> list[Array]:
    """Arrays [size], each at the start of a cache line: vectors that straddle two cost a tenth."""
    step = -(-size * dtype.itemsize // _LINE) * _LINE
    raw = np.empty(count * step + _LINE, np.uint8)
    start = -raw.__array_interface__["data"][0] % _LINE
    rows = [raw[start + i * step :][: size * dtype.itemsize] for i in range(count)]
    return [row.view(dtype) for row in rows]


def _averaged(older: Array, newer: Array, out: Array, spare: list[Array], session: int) -> None:
    np.subtract(newer, older, spare[0])
    np.divide(spare[0], out.dtype.type(session), spare[0])
    np.add(older, spare[0], out)


def _larger(older: Array, newer: Array, out: Array, spare: list[Array], bits: Bits) -> None:
    """newer where |newer| > |older|, else older.

    As integers modulo 2^n, |o| - |n| is o - n with its sign bit flipped where the signs differ; its
    sign, spread over the word, is the mask of the blend.
    """
    old, new = older.view(bits.signed), newer.view(bits.signed)
    mask, differ = (part.view(bits.signed) for part in spare)
    np.bitwise_xor(old, new, differ)
    np.subtract(old, new, mask)
    np.bitwise_xor(mask, differ, mask)
    np.right_shift(mask, bits.shift, mask)
    np.bitwise_and(mask, differ, mask)
    np.bitwise_xor(old, mask, out.view(bits.signed))


def _grown(older: Array, newer: Array, out: Array, spare: list[Array], bits: Bits) -> None:
    """older + newer where that is at least as large as older, else older.

    With its sign bit set, older is |older| - 2^(n-1) as an integer: |sum| minus that has its sign
    bit set exactly where |sum| >= |older|. Elsewhere 0 is added, which changes no older but a zero,
    and nothing is smaller than a zero.
    """
    mask, floor = (part.view(bits.signed) for part in spare)
    np.add(older, newer, spare[0])
    np.bitwise_and(mask, bits.magnitude, mask)
    np.bitwise_or(older.view(bits.signed), bits.sign, floor)
    np.subtract(mask, floor, mask)
    np.right_shift(mask, bits.shift, mask)
    np.bitwise_and(mask, newer.view(bits.signed), mask)
    np.add(older, spare[0], out)


def _check_arguments(
    out: Array, rule: MergeRule, merged: Array, delta: Array, session: int
) -> None:
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
    dtype = maths_dtype(merged.dtype, delta.dtype)
    if out.shape != merged.shape or out.dtype != dtype or not out.flags.c_contiguous:
        raise _error(
            "output of the merge",
            f"a contiguous {dtype} array of shape {merged.shape}",
            f"{out.dtype} {out.shape}, strides {out.strides}",
            "this is a defect: report it",
        )


def _not_finite(out: Array, merged: Array, delta: Array) -> EdgePsloraError:
    """Blames an argument, or else the sum."""
    sides = {"merged delta": merged, "delta": delta, "sum of updates": out}
    if np.may_share_memory(out, merged):
        del sides["merged delta"]  # it was written over
    with np.errstate(invalid="ignore"):  # a signalling NaN
        counts = {n: v.size - int(np.count_nonzero(np.isfinite(v))) for n, v in sides.items()}
    name = next(name for name, bad in counts.items() if bad)
    return _error(
        name,
        "finite values only",
        f"{counts[name]} of {out.size} not finite",
        "lower the learning rate or leave this adapter out",
    )


def _error(where: str, expected: str, found: str, remedy: str) -> EdgePsloraError:
    return EdgePsloraError(where, expected=expected, found=found, remedy=remedy)
