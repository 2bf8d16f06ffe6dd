"""Protobuf's wire format, read from an open file piece by piece: no package of ONNX, nothing of size held.

Format: "Encoding" of the Protocol Buffers documentation.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_pslora.errors import InputError
from edge_pslora.workspace.reading import read_exactly

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_WINDOW = 1 << 16
_REMEDY = "get the file again from whoever made it"


@dataclass(frozen=True)
class Field:
    """body: where the contents begin in the file; end: after them. value: of a VARINT."""

    number: int
    wire: int
    body: int
    end: int
    value: int = 0


class Wire:
    """An open file as messages; see fields."""

    def __init__(self, descriptor: int, path: Path, error: type[InputError]) -> None:
        self.descriptor, self.path, self.error = descriptor, path, error
        self._window, self._first = b"", 0

    def bad(self, expected: str, found: str) -> InputError:
        return self.error(str(self.path), expected=expected, found=found, remedy=_REMEDY)

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of the message that lies from `start` to `end`.

        Raises:
            error: no protobuf, or a field that reaches beyond its message.
        """
        while start < end:
            tag, body = self._varint(start, end)
            number, wire, value, length = tag >> 3, tag & 7, 0, 0
            if wire == BYTES:
                length, body = self._varint(body, end)
            elif wire == VARINT:
                value, after = self._varint(body, end)
                length = after - body
            elif wire in (FIXED64, FIXED32):
                length = 8 if wire == FIXED64 else 4
            else:
                raise self.bad("an ONNX file", f"no protobuf field at {start}")
            if number == 0 or length > end - body:
                raise self.bad("an ONNX file", f"a field of {length} bytes at {start}: cut short")
            yield Field(number, wire, body, body + length, value)
            start = body + length

    def content(self, field: Field, most: int) -> bytes:
        """The contents of a field, at most `most` bytes."""
        size = field.end - field.body
        if field.wire != BYTES or size > most:
            raise self.bad(f"at most {most} bytes in field {field.number}", f"{size} bytes")
        return self._part(field.body, size)

    def text(self, field: Field, most: int = 1024) -> str:
        try:
            return self.content(field, most).decode("utf-8")
        except UnicodeDecodeError as problem:
            raise self.bad("UTF-8 names", f"other bytes at {field.body}") from problem

    def numbers(self, field: Field, most: int) -> list[int]:
        """Of a repeated int64, packed or one by one: signed values."""
        if field.wire == VARINT:
            return [_signed(field.value)]
        found, at = [], field.body
        while at < field.end:
            value, at = self._varint(at, field.end)
            found.append(_signed(value))
            if len(found) > most:
                raise self.bad(f"at most {most} numbers in field {field.number}", "more")
        return found

    def int64s(self, field: Field, most: int) -> list[int]:
        """Of raw little-endian int64 data."""
        data = self.content(field, most * 8)
        return [n for (n,) in struct.iter_unpack("<q", data[: len(data) // 8 * 8])]

    def _part(self, start: int, size: int) -> bytes:
        if not (self._first <= start and start + size <= self._first + len(self._window)):
            if size > _WINDOW:
                return read_exactly(self.descriptor, start, size, self.path, error=self.error)
            self._fill(start, size)
        return self._window[start - self._first : start - self._first + size]

    def _fill(self, start: int, least: int) -> None:
        there = os.fstat(self.descriptor).st_size - start
        size = max(least, min(_WINDOW, there))
        self._window = read_exactly(self.descriptor, start, size, self.path, error=self.error)
        self._first = start

    def _varint(self, start: int, end: int) -> tuple[int, int]:
        """The number at `start`, and the position after it."""
        longest = min(10, end - start)
        if not (self._first <= start and start + longest <= self._first + len(self._window)):
            self._fill(start, longest)
        value, at = 0, start - self._first
        for index in range(longest):
            byte = self._window[at + index]
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, start + index + 1
        raise self.bad("an ONNX file", f"no protobuf field at {start}")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
