"""The lock of a writer that was killed while a child of it had just been forked."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from edge_pslora.errors import WorkspaceLockedError
from edge_pslora.workspace import layout, lock
from edge_pslora.workspace.lock import writer_lock


def _killed_writer(path: Path, seconds: float) -> int:
    """Its grandchild has the lock for so long: the writer is dead, and nobody's child. The grandchild."""
    read, write = os.pipe()
    writer = os.fork()
    if writer == 0:
        with writer_lock(path):
            child = os.fork()
            if child == 0:
                os.write(write, str(os.getpid()).encode())
                time.sleep(seconds)
            os._exit(0)  # as if killed: nothing is let go
    os.close(write)
    os.waitpid(writer, 0)
    child = int(os.read(read, 32))
    os.close(read)
    return child


def test_a_dead_writers_lock_is_waited_for_until_its_child_lets_go(tmp_path: Path) -> None:
    _killed_writer(tmp_path / "w", 0.3)
    with writer_lock(tmp_path / "w"):
        assert (tmp_path / "w" / layout.LOCK).read_text().strip() == str(os.getpid())


def test_it_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_LETTING_GO", 0.05)
    child = _killed_writer(tmp_path / "w", 30.0)
    try:
        with (
            pytest.raises(WorkspaceLockedError, match="no other writer"),
            writer_lock(tmp_path / "w"),
        ):
            pass
    finally:
        os.kill(child, 9)
