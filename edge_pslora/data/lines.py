"""Lines of a text file, bounded in length, strictly UTF-8."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from edge_pslora.data.source import magic_name, shown
from edge_pslora.data.tally import Tally
from edge_pslora.errors import DataError

MAX_LINE_BYTES = 1 << 20

# UTF-32 LE starts with the UTF-16 LE mark: the longer one comes first.
_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32 text"),
    (b"\x00\x00\xfe\xff", "UTF-32 text"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
    (b"\xef\xbb\xbf", "a byte order mark (BOM)"),
)


def _is_binary(head: bytes) -> bool:
    """A column may be called PAR1 or GIF8; a file of these formats also holds bytes like these."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return True
    return any(byte < 9 for byte in head[:4096])


def check_text(path: Path, stream: BinaryIO, max_bytes: int) -> bytes:
    """The first 64 KiB; the stream stands at its beginning afterwards.

    Raises:
        DataError: the file is a known binary format, not UTF-8 at first sight, or too large.
    """
    size = stream.seek(0, 2)
    stream.seek(0)
    head = stream.read(1 << 16)
    stream.seek(0)
    found = (magic_name(head) if _is_binary(head) else None) or next(
        (n for mark, n in _MARKS if head.startswith(mark)), None
    )
    if found is None and head[:2].count(0) == 1 and head[:64].count(0) * 3 > len(head[:64]):
        found = "UTF-16 text without a mark (every other byte is NUL)"
    if found is not None:
        raise DataError(
            shown(path),
            expected="plain UTF-8 text without a byte order mark",
            found=found,
            remedy="save it as UTF-8, or give the file its right name",
        )
    if size > max_bytes:
        raise DataError(
            shown(path),
            expected=f"at most {max_bytes} bytes",
            found=f"{size} bytes",
            remedy="split the file, or raise max_bytes",
        )
    return head


def read_lines(stream: BinaryIO, name: str, tally: Tally) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line, line end included; unreadable lines go to `tally`."""
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(MAX_LINE_BYTES)
            tally.reject(number, f"{name}:{number}", "a line longer than 1 MiB")
            continue
        if b"\0" in raw:
            tally.reject(number, f"{name}:{number}", "a NUL byte (UTF-16, or a damaged file?)")
            continue
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            tally.reject(number, f"{name}:{number}", f"not UTF-8 (byte {error.start + 1})")
            continue
        yield number, text
