"""Replay of an update, transcribed literally: one element at a time, float32 scalars in Python loops.

The fast code of core/replay.py is held to it bit for bit; nothing is shared with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

F = np.float32
Array = npt.NDArray[Any]


def literal_update(A: Array, B: Array, scaling: float) -> Array:
    """D [out, in] = scaling * B A, for A [r, in] and B [out, r]: over the rank from 0 up."""
    out = np.empty((len(B), A.shape[1]), F)
    with np.errstate(all="ignore"):
        for i in range(out.shape[0]):
            for j in range(out.shape[1]):
                total = F(B[i, 0]) * F(A[0, j]) if len(A) else F(0)
                for k in range(1, len(A)):
                    term = F(B[i, k]) * F(A[k, j])
                    total = F(total + term)
                out[i, j] = F(total * F(scaling))
    return out


def literal_next(rule: str, base: Array, previous: Array, update: Array, session: int) -> Array:
    """W_t = W_0 + M_t, M_t merged from M_{t-1} = W_{t-1} - W_0 and D_t."""
    out = np.empty(base.shape, F)
    with np.errstate(all="ignore"):
        for at in np.ndindex(base.shape):
            older, newer = F(previous[at] - base[at]), F(update[at])
            out[at] = F(base[at] + _MERGE[rule](older, newer, session))
    return out


def _average(older: Any, newer: Any, session: int) -> Any:
    return F(older + F(F(newer - older) / F(session)))


def _larger(older: Any, newer: Any, session: int) -> Any:
    return newer if abs(newer) > abs(older) else older


def _grown(older: Any, newer: Any, session: int) -> Any:
    total = F(older + newer)
    return total if abs(total) >= abs(older) else older


_MERGE = {
    "none": lambda older, newer, session: F(older + newer),
    "average": _average,
    "max_magnitude": _larger,
    "constructive": _grown,
}


def literal_bf16(value: Any) -> Any:
    """The nearest bfloat16 by comparing distances to both neighbours, ties to the even one."""
    bits = int(F(value).view(np.uint32))
    below = np.uint32(bits & 0xFFFF0000).view(F)
    above = np.uint32((bits & 0xFFFF0000) + 0x10000).view(F)
    exact = float(value)
    down, up = abs(exact - float(below)), abs(float(above) - exact)
    if not np.isfinite(above):
        up = 2.0**128 - abs(exact)  # what comes after the largest, were there no infinity
    even = (bits >> 16) % 2 == 0
    return below if down < up or (down == up and even) else above


def literal_int8(row: Array) -> tuple[list[int], Any]:
    """Integers and the scale of one row."""
    scale = literal_bf16(F(F(max((abs(v) for v in row), default=F(0))) / F(127)))
    if scale < 2.0**-120:
        return [0] * len(row), F(0)
    return [round(float(F(F(value) / scale))) for value in row], scale
