"""Opening a file that someone else wrote: it must be regular and stay as it is while read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from edge_pslora.errors import DataError

# First bytes of formats that are often met under a wrong name.
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"PK\x03\x04", "a zip archive (.zip, .npz, .pt or .xlsx)"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"\xfd7zXZ", "xz-compressed data"),
    (b"BZh", "bzip2-compressed data"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed data"),
    (b"PAR1", "a Parquet file"),
    (b"%PDF", "a PDF"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x7fELF", "a program"),
    *((b"\x80" + bytes([protocol]), "a Python pickle") for protocol in (2, 3, 4, 5)),
)


# What is packed may unpack to so many times its size, and a little more: real data does not shrink further,
# and what does is made to fill a disk.
_UNPACKED_RATIO = 250
_UNPACKED_FREE = 64 << 20


def unpacked_limit(packed: int, max_bytes: int) -> int:
    """Most bytes that `packed` bytes of a compressed file may stand for."""
    return min(max_bytes, _UNPACKED_RATIO * packed + _UNPACKED_FREE)


def shown(text: str | Path, limit: int = 160) -> str:
    """`text` made fit for one line of a terminal: unprintable characters escaped, long text cut."""
    clean = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in str(text)[: limit + 1]
    )
    return clean if len(str(text)) <= limit else clean[: limit - 3] + "..."


def magic_name(head: bytes) -> str | None:
    """What a file that starts with `head` is, if it is a known binary format."""
    return next((name for start, name in _MAGIC if head.startswith(start)), None)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe (FIFO)",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def cannot_open(path: Path, error: OSError | ValueError) -> DataError:
    """The DataError for a path that the operating system would not give us."""
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        found, remedy = "a symbolic link to nothing", "repair the link"
    elif isinstance(error, FileNotFoundError):
        found, remedy = "nothing there", "check the path"
    elif isinstance(error, PermissionError):
        found, remedy = "no permission to read it", "change its permissions"
    elif isinstance(error, OSError):
        found, remedy = error.strerror or type(error).__name__, "check the path and the disk"
    else:
        found, remedy = "a name that no file can have", "check the path"
    return DataError(shown(path), expected="a readable file", found=found, remedy=remedy)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def file_status(path: Path) -> os.stat_result:
    """`os.stat`, with its failures as a DataError."""
    try:
        return path.stat()
    except (OSError, ValueError) as error:
        raise cannot_open(path, error) from error


@contextmanager
def open_input(path: Path) -> Iterator[BinaryIO]:
    """The regular file at `path`, open for reading.

    Raises:
        DataError: it is missing, not a regular file, empty, unreadable, or it changed meanwhile.
    """
    before = file_status(path)
    _check_regular(path, before)
    # Should a pipe take the file's place here, O_NONBLOCK keeps the open from waiting for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise cannot_open(path, error) from error
    try:
        _check_regular(path, os.fstat(descriptor))
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            try:
                yield stream
            except OSError as error:
                raise cannot_open(path, error) from error
    finally:
        os.close(descriptor)
    if _identity(file_status(path)) != _identity(before):
        raise DataError(
            shown(path),
            expected="a file that stays as it is while it is read",
            found="it changed",
            remedy="try again when nothing writes to it",
        )


def _check_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise DataError(
            shown(path),
            expected="a regular file",
            found=_kind(status.st_mode),
            remedy="give a file with data",
        )
    if status.st_size == 0:
        raise DataError(
            shown(path), expected="data", found="an empty file", remedy="give a file with rows"
        )
