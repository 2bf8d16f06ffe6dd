"""A bundle as one uncompressed .tar file: its members are read where they lie, never extracted.

tarfile reads the headers, one block at a time; what decides is here: plain files and folders only,
every name once, and names of its own for nothing but that.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_pslora.errors import BundleError
from edge_pslora.signing.sources import check_name, missing, stream_open
from edge_pslora.workspace.reading import read_exactly

_MOST_MEMBERS = 10_000
_LONGEST_NAME = 64 << 10  # a header of its own, for a name that does not fit
_BLOCK = tarfile.BLOCKSIZE
_PAX_PATH = re.compile(rb"(?:^|\n)[0-9]{1,5} path=([^\n]{1,4096})\n")
_PAX_SIZE = re.compile(rb"(?:^|\n)[0-9]{1,5} size=")


@dataclass(frozen=True)
class Member:
    """Where the contents of one file lie."""

    offset: int
    size: int


class TarSource:
    """An open .tar file and what lies where in it."""

    def __init__(self, where: str, descriptor: int, members: Mapping[str, Member]) -> None:
        self._where, self._descriptor, self._members = where, descriptor, members

    @property
    def where(self) -> str:
        return self._where

    def stream(self, name: str, limit: int) -> Iterator[bytes]:
        member = self._members.get(check_name(name, self.where))
        if member is None:
            raise missing(self.where, name)
        where = f"{self.where}, {name}"
        yield from stream_open(self._descriptor, member.offset, member.size, limit, where)


def index(descriptor: int, size: int, where: str) -> dict[str, Member]:
    """The plain files of an open .tar by name; every byte up to its end is accounted for.

    Raises:
        BundleError: damaged, cut short, compressed, or with anything but plain files and folders.
    """
    members: dict[str, Member] = {}
    offset, longer, count = 0, "", 0
    while offset + _BLOCK <= size:
        block = read_exactly(descriptor, offset, _BLOCK, Path(where), error=BundleError)
        offset += _BLOCK
        if block == bytes(_BLOCK):
            return members
        count += 1
        info = _header(block, where, count)
        end = offset + info.size
        if info.size < 0 or end > size:
            raise _bad(where, "whole members", f"one of {info.size} bytes: it is cut short")
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
            if info.size > _LONGEST_NAME:
                raise _bad(where, "names of a common length", f"one of {info.size} bytes")
            data = read_exactly(descriptor, offset, info.size, Path(where), error=BundleError)
            longer = _long_name(info.type, data, where) or longer
        elif info.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            name = check_name((longer or info.name).removeprefix("./"), where)
            if name in members:
                raise _bad(where, "every name once", f"{name} twice")
            members[name], longer = Member(offset, info.size), ""
        elif info.type == tarfile.DIRTYPE and info.size == 0:
            longer = ""
        elif info.type != tarfile.XGLTYPE:
            raise _bad(
                where, "plain files and folders", f"{ascii(info.name)[:80]}, which is neither"
            )
        offset = end + -end % _BLOCK
    raise _bad(where, "a whole .tar file", "one without an end: it is cut short")


def _header(block: bytes, where: str, count: int) -> tarfile.TarInfo:
    if count > _MOST_MEMBERS:
        raise _bad(where, f"at most {_MOST_MEMBERS} members", "more")
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as problem:
        raise _bad(
            where, "a bundle: a folder or an uncompressed .tar file", str(problem)
        ) from problem


def _long_name(kind: bytes, data: bytes, where: str) -> str:
    if kind == tarfile.GNUTYPE_LONGNAME:
        return data.rstrip(b"\0").decode("ascii", "backslashreplace")
    if _PAX_SIZE.search(data):
        raise _bad(where, "sizes in the common place", "one of 8 GB or more")
    found = _PAX_PATH.search(data)
    return "" if found is None else found.group(1).decode("ascii", "backslashreplace")


def _bad(where: str, expected: str, found: str) -> BundleError:
    return BundleError(
        where,
        expected=expected,
        found=found,
        remedy="copy the bundle again, or pack its folder with: tar cf FILE -C FOLDER .",
    )
