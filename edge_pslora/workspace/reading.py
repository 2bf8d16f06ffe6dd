"""Reading files that may be anything: pipes, devices, folders, too large, changed while read."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edge_pslora.errors import InputError, WorkspaceError

_CHUNK = 1 << 20


class Hash(Protocol):
    """A sum in the making, such as hashlib.sha256()."""

    def update(self, data: bytes | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass(frozen=True)
class FileDigest:
    """A file's length in bytes and its sha256, hexadecimal."""

    bytes: int
    sha256: str


@contextmanager
def open_regular(
    path: Path, *, error: type[InputError] = WorkspaceError
) -> Iterator[tuple[int, int]]:
    """A read-only descriptor of a regular file and its size; anything else is an `error`.

    Opened without blocking, so that a named pipe cannot hang the caller.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        raise error(
            str(path),
            expected="a readable file",
            found=_reason(problem),
            remedy="check the path and its permissions",
        ) from problem
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise error(
                str(path),
                expected="a regular file",
                found="a folder, pipe or device",
                remedy="give a file",
            )
        yield descriptor, info.st_size
    finally:
        os.close(descriptor)


def read_limited(path: Path, limit: int, *, error: type[InputError] = WorkspaceError) -> bytes:
    """The whole file, at most `limit` bytes; a larger one is an `error` and is not read."""
    with open_regular(path, error=error) as (descriptor, size):
        if size > limit:
            raise error(
                str(path),
                expected=f"at most {limit} bytes",
                found=f"{size} bytes",
                remedy="this is not a file that edge-pslora wrote",
            )
        return read_exactly(descriptor, 0, size, path, error=error)


def read_exactly(
    descriptor: int, offset: int, size: int, path: Path, *, error: type[InputError]
) -> bytes:
    """`size` bytes from `offset`; a file that ends earlier is an `error`."""
    buffer = bytearray(size)
    read_into(descriptor, offset, memoryview(buffer), path, error=error)
    return bytes(buffer)


def read_into(
    descriptor: int, offset: int, buffer: memoryview, path: Path, *, error: type[InputError]
) -> None:
    """Fill `buffer` (bytes) from `offset` on."""
    done = 0
    try:
        while done < len(buffer):
            count = os.preadv(descriptor, [buffer[done : done + (1 << 30)]], offset + done)
            if count == 0:
                raise error(
                    str(path),
                    expected=f"{len(buffer)} bytes at {offset}",
                    found=f"the file ends after {done}",
                    remedy="the file is cut short or was changed while read; copy it again",
                )
            done += count
    except OSError as problem:
        raise error(
            str(path),
            expected="readable contents",
            found=_reason(problem),
            remedy="check the disk",
        ) from problem


def digest_file(path: Path, *, error: type[InputError] = WorkspaceError) -> FileDigest:
    """Length and sha256 of a regular file, in bounded memory."""
    digest = hashlib.sha256()
    with open_regular(path, error=error) as (descriptor, size):
        digest_open(descriptor, 0, size, path, digest, error=error)
    return FileDigest(size, digest.hexdigest())


def digest_bytes(data: bytes) -> FileDigest:
    """Length and sha256 of what would be a file's content."""
    return FileDigest(len(data), hashlib.sha256(data).hexdigest())


def digest_open(
    descriptor: int,
    first: int,
    end: int,
    path: Path,
    digest: Hash,
    *,
    error: type[InputError] = WorkspaceError,
) -> None:
    """Put the bytes `first` to `end` of an open file into `digest`, in bounded memory.

    Raises:
        error: the file ends earlier or cannot be read.
    """
    buffer = memoryview(bytearray(min(_CHUNK, max(end - first, 0))))
    for offset in range(first, end, _CHUNK):
        part = buffer[: min(_CHUNK, end - offset)]
        read_into(descriptor, offset, part, path, error=error)
        digest.update(part)


def _reason(problem: OSError | ValueError) -> str:
    return (problem.strerror if isinstance(problem, OSError) else None) or str(problem)
