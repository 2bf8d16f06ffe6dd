"""Where a bundle comes from: a folder, an uncompressed .tar of it, or a local web server.

A source hands out the bytes of one named file and promises nothing of them. What is read is bounded,
in bytes and in time, whatever the source does; no link in it is followed, nothing is extracted.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from edge_pslora.errors import BundleError
from edge_pslora.workspace.reading import open_regular

CHUNK = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}(/[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}){0,4}")
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})


class MissingFileError(BundleError):
    """The source has no file of that name."""


class Source(Protocol):
    """One of the three; see open_source."""

    @property
    def where(self) -> str:
        """What the user called it."""
        ...

    def stream(self, name: str, limit: int) -> Iterator[bytes]:
        """The contents of a file, and no more than `limit` + 1 bytes of it.

        Raises:
            MissingFileError: no such file.
            BundleError: not a plain file, or it cannot be read.
        """
        ...


@contextmanager
def open_source(text: str) -> Iterator[Source]:
    """The source at a path or an http(s) address.

    Raises:
        BundleError: nothing of the kind there, or a .tar that is damaged, compressed or holds links.
    """
    with ExitStack() as stack:
        if re.match(r"https?://", text):
            # not above: a device that is fed by a USB stick does not need it
            from edge_pslora.signing.web import WebSource

            yield WebSource(text)
        elif Path(text).is_dir():
            yield stack.enter_context(_open_folder(Path(text)))
        else:
            from edge_pslora.signing.tar import TarSource, index

            opened = open_regular(Path(text), error=BundleError)
            descriptor, size = stack.enter_context(opened)
            yield TarSource(text, descriptor, index(descriptor, size, text))


def read(source: Source, name: str, limit: int) -> bytes:
    """A whole file.

    Raises:
        MissingFileError: no such file.
        BundleError: longer than `limit` bytes, or it cannot be read.
    """
    data = bytearray()
    for part in source.stream(name, limit):
        data += part
    if len(data) > limit:
        raise BundleError(
            f"{source.where}, {name}",
            expected=f"at most {limit} bytes",
            found="more",
            remedy="this is no bundle of edge-pslora; nothing was changed",
        )
    return bytes(data)


def check_name(name: str, where: str) -> str:
    """Plain names with '/' between them: nothing hidden, nothing that leads out."""
    if _NAME.fullmatch(name) is None:
        raise BundleError(
            where,
            expected="a plain file name",
            found=ascii(name)[:80],
            remedy="this is no bundle of edge-pslora; nothing was changed",
        )
    return name


def missing(where: str, name: str) -> MissingFileError:
    return MissingFileError(
        where,
        expected=f"a bundle with a file {name}",
        found="none there",
        remedy="check the path, or copy the bundle as a whole once enough keys have signed it",
    )


def stream_open(descriptor: int, offset: int, size: int, limit: int, where: str) -> Iterator[bytes]:
    """`size` bytes of an open file from `offset` on; at most `limit` + 1 of them."""
    end = offset + min(size, limit + 1)
    while offset < end:
        try:
            part = os.pread(descriptor, min(CHUNK, end - offset), offset)
        except OSError as problem:
            raise unreadable(where, problem) from problem
        if not part:
            raise BundleError(
                where,
                expected=f"{size} bytes",
                found="it ends earlier",
                remedy="it was changed while read, or cut short; copy the bundle again",
            )
        yield part
        offset += len(part)


def unreadable(where: str, problem: OSError) -> BundleError:
    return BundleError(
        where,
        expected="a readable bundle",
        found=problem.strerror or str(problem) or type(problem).__name__,
        remedy="check the medium or the server, then run the same command again",
    )


class FolderSource:
    """A folder that stays open: what is renamed over it meanwhile is not looked at."""

    def __init__(self, where: str, descriptor: int) -> None:
        self._where, self._descriptor = where, descriptor

    @property
    def where(self) -> str:
        return self._where

    def stream(self, name: str, limit: int) -> Iterator[bytes]:
        where = f"{self.where}/{check_name(name, self.where)}"
        with ExitStack() as stack:
            folder = self._descriptor
            *folders, last = name.split("/")
            try:
                for part in folders:
                    folder = _open_at(part, folder, os.O_DIRECTORY, stack)
                file = _open_at(last, folder, os.O_NONBLOCK, stack)
                info = os.fstat(file)
            except OSError as problem:
                if problem.errno in _MISSING and not self._is_link(name):
                    raise missing(self.where, name) from problem
                raise unreadable(where, problem) from problem
            if not stat.S_ISREG(info.st_mode):
                raise _not_plain(where)
            yield from stream_open(file, 0, info.st_size, limit, where)

    def _is_link(self, name: str) -> bool:
        """A folder on the way may be a link: opened as a folder, it is said not to be one."""
        parts = name.split("/")
        return any(
            _links(self._descriptor, "/".join(parts[: count + 1])) for count in range(len(parts))
        )


def _links(folder: int, name: str) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _open_at(name: str, folder: int, flags: int, stack: ExitStack) -> int:
    flags |= os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=folder)
    stack.callback(os.close, descriptor)
    return descriptor


@contextmanager
def _open_folder(path: Path) -> Iterator[FolderSource]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as problem:
        raise unreadable(str(path), problem) from problem
    try:
        yield FolderSource(str(path), descriptor)
    finally:
        os.close(descriptor)


def _not_plain(where: str) -> BundleError:
    return BundleError(
        where,
        expected="a regular file",
        found="a folder, link, pipe or device",
        remedy="copy the bundle again as plain files",
    )
