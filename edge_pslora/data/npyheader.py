"""The header of a .npy array, parsed by hand so that nothing in it is trusted or evaluated.

Source: the .npy format, NumPy documentation, `numpy.lib.format` (versions 1.0, 2.0 and 3.0).
"""

from __future__ import annotations

import ast
import math
import re
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

MAX_HEADER_BYTES = 10_000
MAX_DIMENSIONS = 8

# Booleans, integers, floats and text. Objects (O), complex, dates, void, records are no data here.
_DTYPE = re.compile(r"[<>|=]?([?biufSU])(\d{1,9})|[<>|=]?\?")


class HeaderError(ValueError):
    """A header that is damaged or asks for something that is not read; the message says what."""


@dataclass(frozen=True)
class NpyHeader:
    """dtype and shape of the array, its memory order, and where its data starts in the member."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise HeaderError("a header cut short")
    return data


def _dtype(descr: object) -> np.dtype[Any]:
    if isinstance(descr, str) and "O" in descr:
        raise HeaderError("Python objects (a pickle), which are never loaded")
    if not isinstance(descr, str) or not _DTYPE.fullmatch(descr):
        raise HeaderError(f"elements of type {str(descr)[:40]!r}")
    try:
        found = np.dtype(descr)
    except (TypeError, ValueError) as error:
        raise HeaderError(f"elements of type {descr!r}") from error
    if found.itemsize == 0 or (found.kind == "f" and found.itemsize > 8):
        raise HeaderError(f"elements of type {descr!r}")
    return found


def read_npy_header(stream: IO[bytes]) -> NpyHeader:
    """Reads the header and leaves the stream at the first byte of data.

    Raises:
        HeaderError: not a .npy array, or one that cannot be used.
    """
    start = _exactly(stream, 8)
    if start[:6] != b"\x93NUMPY" or start[6] not in (1, 2, 3) or start[7] != 0:
        raise HeaderError("no .npy array")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(_exactly(stream, width), "little")
    if length > MAX_HEADER_BYTES:
        raise HeaderError(f"a header of {length} bytes")
    try:
        fields = ast.literal_eval(_exactly(stream, length).decode("latin-1").strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        if isinstance(error, HeaderError):
            raise
        raise HeaderError("a damaged header") from error
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise HeaderError("a damaged header")
    shape = fields["shape"]
    if (
        not isinstance(shape, tuple)
        or len(shape) > MAX_DIMENSIONS
        or not all(type(size) is int and 0 <= size < 2**48 for size in shape)
        or type(fields["fortran_order"]) is not bool
    ):
        raise HeaderError("a damaged or unusable shape")
    return NpyHeader(_dtype(fields["descr"]), shape, fields["fortran_order"], 8 + width + length)
