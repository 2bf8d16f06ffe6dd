"""The prefix cache's rows in the run's scratch folder: staging/N.run/prefix.rows and prefix.json.

The rows are not fsynced: after a power loss they are computed again. What must not lie is prefix.json,
which says that they are all there: it is written last, names the run, the cut and the form, and holds the
digest of the table of checksums, which is read before any row is trusted, as each row's is at every
reading. Plain reads, no mapping: mapped pages would count as the process's memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from edge_pslora.errors import WorkspaceError
from edge_pslora.workspace import durable, strict_json

ROWS, MARK = "prefix.rows", "prefix.json"


class FileRows:
    """A RowStore; see training.prefix_cache."""

    def __init__(self, file: BinaryIO, mark: Path, key: str, tag: str | None) -> None:
        self._file, self._mark, self._key, self._tag = file, mark, key, tag

    def finished(self) -> str | None:
        return self._tag

    def write(self, offset: int, data: bytes) -> None:
        self._file.seek(offset)
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        parts = []
        while size > 0 and (part := self._file.read(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def finish(self, tag: str) -> None:
        durable.write_bytes(self._mark, strict_json.canonical({"key": self._key, "rows": tag}))
        self._tag = tag


@contextmanager
def open_rows(folder: Path, key: str) -> Iterator[FileRows]:
    """The rows kept under this key by a killed run, or none; the files are removed when the session is
    through, and stay when it failed or was stopped.

    key: digest of everything that the rows depend on.
    """
    rows, mark = folder / ROWS, folder / MARK
    tag = _tag(mark, key) if rows.exists() else None
    if tag is None:
        _remove(mark, rows)
    with durable.storage_errors(folder, ROWS):
        # another name than a published file's, in a folder that is never published
        file = cast("BinaryIO", rows.open("r+b" if tag else "x+b", buffering=0))
    with file:
        yield FileRows(file, mark, key, tag)
    _remove(mark, rows)


def free_bytes(folder: Path) -> int:
    """Free space of the file system for this process."""
    with durable.storage_errors(folder, ROWS):
        info = os.statvfs(folder)
    return info.f_bavail * info.f_frsize


def _tag(mark: Path, key: str) -> str | None:
    if not mark.exists():
        return None
    try:
        content = strict_json.read(mark)
    except WorkspaceError:
        return None  # damaged: the rows are computed again
    tag = content.get("rows")
    return tag if content.get("key") == key and isinstance(tag, str) else None


def _remove(*paths: Path) -> None:
    for path in paths:  # the mark first: without it the rows are nothing
        if path.exists():
            durable.remove_file(path)
