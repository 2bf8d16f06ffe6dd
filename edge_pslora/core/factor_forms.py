"""The forms in which factors of an update are shipped, and what rounding to them leaves. Numpy only.

A factor is a matrix [r, n], a row for each component of the rank (A as it is, B transposed).
float32: as trained. bf16: each number to bfloat16, the nearest, ties to even. int8 and int12: each row
as integers of at most 127 or 2047 in size times one scale. A scale has 13 bits of mantissa: with the 7
or 11 of an integer they fit in a float32, so integer * scale is exact, and what was rounded once stays
as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edge_pslora.config import FactorForm
from edge_pslora.errors import EdgePsloraError

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int16]
LEVELS: dict[FactorForm, int] = {"int8": 127, "int12": 2047}
# bits of a float32 that are cleared: a bfloat16 keeps 8 of the mantissa, a scale 13
_BF16, _SCALE = 16, 11
# Scales below have a shorter mantissa (or are zero): such a row is nothing, and becomes zeros.
_LEAST_SCALE = np.float32(2.0**-110)


def rounded(form: FactorForm, factor: Floats) -> Floats:
    """What a receiver of the factor [r, n] in that form has, float32; rounded twice is rounded once.

    Raises:
        EdgePsloraError: a value is not finite.
    """
    if not np.isfinite(factor).all():
        raise EdgePsloraError(
            "factors of an update",
            expected="finite values",
            found="NaN or infinity",
            remedy="the old model was kept; lower --learning-rate",
        )
    if form in LEVELS:
        return from_integers(*to_integers(form, factor))
    return to_bf16(factor) if form == "bf16" else factor.astype(np.float32)


def to_bf16(values: Floats) -> Floats:
    """The nearest bfloat16 of each finite value, ties to even, as float32."""
    return _nearest(values, _BF16)


def to_integers(form: FactorForm, factor: Floats) -> tuple[Integers, Floats]:
    """Integers [r, n] and the scale of each row [r], a float32 with 13 bits of mantissa.

    The scale is the nearest such number to max|row| / levels. It is off by 1 in 8192 at most, so the
    largest entry becomes `levels` again (2047 / 8192 is less than a half): a second rounding finds the
    same scale.
    """
    levels = np.float32(LEVELS[form])
    largest = np.abs(factor).max(axis=1, initial=0.0).astype(np.float32)
    scales = _nearest(largest / levels, _SCALE)
    scales = np.where(scales < _LEAST_SCALE, np.float32(0), scales)
    divisors = np.where(scales == 0, np.float32(1), scales)
    kept = np.where(scales[:, None] == 0, np.float32(0), factor)
    return np.rint(kept / divisors[:, None]).astype(np.int16), scales


def from_integers(numbers: npt.NDArray[Any], scales: Floats) -> Floats:
    """The inverse: exact for scales as `to_integers` gives them."""
    with np.errstate(over="ignore"):
        product: Floats = numbers.astype(np.float32) * scales[:, None]
    return product


def split_bits(numbers: Integers) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.uint8]]:
    """12 bits of each of n integers: the high 8 [n], and the low 4 [(n + 1) // 2], the first of two
    in the low half of their byte."""
    flat = numbers.reshape(-1)
    low = np.zeros(flat.size + flat.size % 2, np.uint8)
    low[: flat.size] = flat & 15
    return (flat >> 4).astype(np.int8), (low[::2] | low[1::2] << 4).astype(np.uint8)


def join_bits(high: npt.NDArray[np.int8], low: npt.NDArray[np.uint8]) -> Integers:
    """The inverse of `split_bits`."""
    halves = np.empty(2 * low.size, np.uint8)
    halves[::2], halves[1::2] = low & 15, low >> 4
    return high.astype(np.int16) * 16 + halves[: high.size]


def _nearest(values: Floats, cleared: int) -> Floats:
    """Each finite value with its last bits cleared: the nearest such number, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    odd = (bits >> np.uint32(cleared)) & np.uint32(1)
    below_half = np.uint32((1 << (cleared - 1)) - 1)
    nearest = (bits + below_half + odd) & np.uint32(2**32 - (1 << cleared))
    return nearest.view(np.float32)
