"""Floats as the integers that hold them: masks, and whether all of an array is finite. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Bits:
    """signed, unsigned: integer types of the width; the others are values of the signed one.

    infinity, negative_infinity: their patterns, signed and unsigned. shift: width - 1.
    """

    signed: type[np.signedinteger[Any]]
    unsigned: type[np.unsignedinteger[Any]]
    infinity: int
    negative_infinity: int
    magnitude: Any
    sign: Any
    shift: Any


def _bits(
    signed: type[np.signedinteger[Any]], unsigned: type[np.unsignedinteger[Any]], infinity: int
) -> Bits:
    limits = np.iinfo(signed)
    return Bits(
        signed,
        unsigned,
        infinity,
        infinity - int(limits.min),
        signed(limits.max),
        signed(limits.min),
        signed(limits.bits - 1),
    )


_BITS = {
    "float64": _bits(np.int64, np.uint64, 0x7FF0000000000000),
    "float32": _bits(np.int32, np.uint32, 0x7F800000),
    "float16": _bits(np.int16, np.uint16, 0x7C00),
    "bfloat16": _bits(np.int16, np.uint16, 0x7F80),
}


def bits_of(dtype: np.dtype[Any]) -> Bits:
    """For float64, float32, float16 and ml_dtypes' bfloat16, in the machine's byte order."""
    return _BITS[dtype.name]


def has_bits(dtype: np.dtype[Any]) -> bool:
    return dtype.name in _BITS and dtype.isnative


def is_finite(values: Array, bits: Bits) -> bool:
    """Whether no value is NaN or infinite, without a temporary: two reductions over the bits.

    A positive value that is not finite is above all others as a signed integer, a negative one as
    an unsigned integer. bits: bits_of(values.dtype).
    """
    return not values.size or bool(
        np.maximum.reduce(values.view(bits.signed)) < bits.infinity
        and np.maximum.reduce(values.view(bits.unsigned)) < bits.negative_infinity
    )
