"""Rows and texts that do not fit the memory's share: kept in an unlinked file, read back by mapping it.

Up to SPOOL_BYTES everything stays in memory, so that small data never touches the disk. The file has no
name, goes with the process, and lies where Python puts temporary files (the variable TMPDIR).
"""

from __future__ import annotations

import mmap
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from typing import IO, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from edge_pslora.errors import EdgePsloraError

SPOOL_BYTES = 16_000_000  # what one column of a data set may hold in memory
_BLOCK = 1 << 20


def _no_room(error: OSError, size: int) -> EdgePsloraError:
    return EdgePsloraError(
        f"temporary folder {tempfile.gettempdir()}",
        expected=f"room for {size} bytes of data",
        found=error.strerror or type(error).__name__,
        remedy="free some space, or name another folder in TMPDIR",
    )


class ByteSpool:
    """Bytes that are appended once and read as an array afterwards."""

    def __init__(self) -> None:
        self.size = 0
        self._buffer = bytearray()
        self._file: IO[bytes] | None = None

    def write(self, data: bytes | memoryview) -> None:
        """Raises EdgePsloraError: the temporary folder is full."""
        self._buffer += data
        self.size += len(data)
        if len(self._buffer) > (SPOOL_BYTES if self._file is None else _BLOCK):
            self._flush()

    def _flush(self) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as the map
            rest = memoryview(self._buffer)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _no_room(error, self.size) from error
        self._buffer = bytearray()

    def array(self, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """All bytes, flat; nothing may be written afterwards. In memory, or mapped from the file."""
        if self._file is None:
            return np.frombuffer(self._buffer, dtype) if self.size else np.empty(0, dtype)
        self._flush()
        # Shared and not private: a private map counts as memory wherever the system refuses to overcommit.
        try:
            mapped = mmap.mmap(self._file.fileno(), self.size)
        except OSError as error:
            raise _no_room(error, self.size) from error
        self._file.close()  # the map lives on
        return np.frombuffer(mapped, dtype)

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()


class Numbers:
    """Numbers that are appended: float32 ("f"), float64 ("d") or int64 ("q")."""

    def __init__(self, typecode: Literal["f", "d", "q"] = "f") -> None:
        self._spool = ByteSpool()
        self._typecode = typecode
        self._values = array(typecode)

    def extend(self, values: Iterable[float]) -> None:
        self._values.extend(values)  # type: ignore[arg-type]
        if len(self._values) * self._values.itemsize > _BLOCK:
            self._move()

    def _move(self) -> None:
        self._spool.write(self._values.tobytes())
        self._values = array(self._typecode)

    def rows(self, width: int) -> npt.NDArray[Any]:
        """[N, width]."""
        self._move()
        return self._spool.array(np.dtype(self._typecode)).reshape(-1, width)


class SpooledTexts(Sequence[str]):
    """N texts as UTF-8 in one flat array, decoded when they are asked for.

    data: uint8; starts: int64 [M + 1] into it; rows: int64 [N], which of the M texts these are.
    """

    def __init__(
        self,
        data: npt.NDArray[np.uint8],
        starts: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self._data, self._starts, self._rows = data, starts, rows

    def __len__(self) -> int:
        return len(self._starts) - 1 if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        row = index if self._rows is None else int(self._rows[index])
        return self._data[self._starts[row] : self._starts[row + 1]].tobytes().decode("utf-8")

    def take(self, indices: npt.NDArray[np.int64]) -> SpooledTexts:
        """The texts at `indices`; they share the data."""
        return SpooledTexts(
            self._data, self._starts, indices if self._rows is None else self._rows[indices]
        )


class Texts:
    """Texts that are appended one by one: a list while it is short."""

    def __init__(self) -> None:
        self._list: list[str] = []
        self._listed = 0  # characters in the list
        self._data: ByteSpool | None = None
        self._starts = ByteSpool()

    def append(self, text: str) -> None:
        self._list.append(text)
        self._listed += len(text) + 50  # what a string object takes besides
        if self._listed > (SPOOL_BYTES if self._data is None else _BLOCK):
            self._move()

    def _move(self) -> None:
        data = self._data
        if data is None:
            data = self._data = ByteSpool()
            self._starts.write((0).to_bytes(8, "little"))
        for text in self._list:
            data.write(text.encode("utf-8"))
            self._starts.write(data.size.to_bytes(8, "little"))
        self._list, self._listed = [], 0

    def sequence(self) -> Sequence[str]:
        if self._data is None:
            return self._list
        self._move()
        return SpooledTexts(self._data.array(np.uint8), self._starts.array("<i8"))


def rows_at_a_time(values: npt.NDArray[Any]) -> int:
    """How many rows to handle at a time, so that what is made of them stays small."""
    row_bytes = values.itemsize * int(np.prod(values.shape[1:]))
    return max(1, min(8192, _BLOCK // max(1, row_bytes)))


def take_rows(values: npt.NDArray[Any], indices: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """values[indices], spooled where that is large; `values` itself where it is every row in order."""
    if _is_everything(indices, len(values)):
        return values
    row_bytes = values.itemsize * int(np.prod(values.shape[1:]))
    if len(indices) * row_bytes <= SPOOL_BYTES:
        chosen: npt.NDArray[Any] = values[indices]
        return chosen
    spool, step = ByteSpool(), max(1, _BLOCK // max(1, row_bytes))
    for start in range(0, len(indices), step):
        spool.write(np.ascontiguousarray(values[indices[start : start + step]]).tobytes())
    return spool.array(values.dtype).reshape(len(indices), *values.shape[1:])


def _is_everything(indices: npt.NDArray[Any], count: int) -> bool:
    if len(indices) != count:
        return False
    blocks = range(0, count, _BLOCK)
    return all(
        np.array_equal(indices[i : i + _BLOCK], np.arange(i, min(count, i + _BLOCK)))
        for i in blocks
    )


def take_texts(texts: Sequence[str], indices: npt.NDArray[np.int64]) -> Sequence[str]:
    """The texts at `indices`, in that order."""
    if isinstance(texts, SpooledTexts):
        return texts.take(indices)
    return [texts[int(i)] for i in indices]
