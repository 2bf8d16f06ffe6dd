"""The forms in which factors of an update are shipped, and what rounding to them leaves. Numpy only.

A factor is a matrix [r, n], a row for each component of the rank (A as it is, B transposed).
float32: as trained. bf16: each number to bfloat16, the nearest, ties to even. int8: each row as
integers of -127 to 127 times one scale. A scale is a bfloat16: 8 bits of mantissa times 7 of an
integer fit in float32, so integer * scale is exact, and what was rounded once stays as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edge_pslora.config import FactorForm
from edge_pslora.errors import EdgePsloraError

Floats = npt.NDArray[np.float32]
LEVELS = 127
# Scales below have a shorter mantissa (or are zero): such a row is nothing, and becomes zeros.
_LEAST_SCALE = np.float32(2.0**-120)


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
    if form == "int8":
        return from_int8(*to_int8(factor))
    return to_bf16(factor) if form == "bf16" else factor.astype(np.float32)


def to_bf16(values: Floats) -> Floats:
    """The nearest bfloat16 of each finite value, ties to even, as float32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    nearest = (bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)
    return nearest.view(np.float32)


def to_int8(factor: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Integers [r, n] and the scale of each row [r], float32 with the mantissa of a bfloat16.

    The scale is the nearest bfloat16 to max|row| / 127. It is off by 1 in 256 at most, so the largest
    entry becomes 127 or -127 (127 / 256 is less than a half): a second rounding finds the same scale.
    """
    largest = np.abs(factor).max(axis=1, initial=0.0).astype(np.float32)
    scales = to_bf16(largest / np.float32(LEVELS))
    scales = np.where(scales < _LEAST_SCALE, np.float32(0), scales)
    divisors = np.where(scales == 0, np.float32(1), scales)
    kept = np.where(scales[:, None] == 0, np.float32(0), factor)
    return np.rint(kept / divisors[:, None]).astype(np.int8), scales


def from_int8(numbers: npt.NDArray[np.int8], scales: npt.NDArray[Any]) -> Floats:
    """The inverse: exact for scales as `to_int8` gives them."""
    with np.errstate(over="ignore"):
        product: Floats = numbers.astype(np.float32) * scales.astype(np.float32)[:, None]
    return product
