"""Faults to plant in the running code: a section that does not catch its own proves nothing."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edge_pslora.workspace import durable, layout, staging
from edge_pslora.workspace.pointer import Pointer, replace_pointer

_fsync = os.fsync


def _is_folder(descriptor: Any) -> bool:
    number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
    return stat.S_ISDIR(os.fstat(number).st_mode)


def no_fsync_of_files() -> None:
    os.fsync = lambda descriptor: _fsync(descriptor) if _is_folder(descriptor) else None


def no_fsync_of_folders() -> None:
    os.fsync = lambda descriptor: None if _is_folder(descriptor) else _fsync(descriptor)


def retried_fsync() -> None:
    """A second try succeeds although the data may be gone: what PostgreSQL did for twenty years."""

    def retrying(descriptor: Any) -> None:
        try:
            _fsync(descriptor)
        except OSError:
            _fsync(descriptor)

    os.fsync = retrying


def pointer_before_data() -> None:
    """A generation is pointed to, then its files are synced and get their name."""
    real = durable.publish_folder

    def published(staged: Path, final: Path) -> None:
        if (staged / layout.MANIFEST).exists():
            data = (staged / layout.MANIFEST).read_bytes()
            pointer = Pointer(int(final.name), hashlib.sha256(data).hexdigest())
            replace_pointer(final.parent.parent, pointer)
        real(staged, final)

    durable.publish_folder = published


def written_in_place() -> None:
    """No temporary file, no rename."""

    def new_file(path: Path, *, mode: int = 0o644) -> Iterator[Append]:  # noqa: F821 - runs among the names of durable.py
        with storage_errors(path.parent, path.name):  # noqa: F821
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
            try:
                yield Append(descriptor)  # noqa: F821
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            fsync_folder(path.parent)  # noqa: F821

    # the function itself, so that modules that took it by name have the fault too
    _wrapped(durable.new_file).__code__ = new_file.__code__


def parents_not_synced() -> None:
    """The names of folders wait for the next power loss."""

    def make_folder(folder: Path) -> None:
        folder.mkdir(exist_ok=True)

    durable.make_folder.__code__ = make_folder.__code__


def swallowed_no_space() -> None:
    """What does not fit is not written, and nobody hears of it."""
    real = durable.Append.__call__

    def append(self: durable.Append, data: bytes | memoryview) -> None:
        try:
            real(self, data)
        except OSError:
            return

    durable.Append.__call__ = append


def leftovers_kept() -> None:
    """Nothing is cleaned: not by who failed, nor by the next run."""

    def kept(folder: Path, name: str) -> None:
        return

    durable.remove_leftovers.__code__ = kept.__code__
    staging.clean = lambda path, keep=frozenset(): None
    Path.unlink = lambda self, missing_ok=False: None


def _wrapped(function: Any) -> Callable[..., Any]:
    wrapped: Callable[..., Any] = function.__wrapped__
    return wrapped
