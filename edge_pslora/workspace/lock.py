"""One writer per workspace: an advisory lock that ends with its process. Readers never lock."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edge_pslora.errors import WorkspaceLockedError
from edge_pslora.workspace import layout
from edge_pslora.workspace.durable import make_folders, storage_errors

# A child between fork and exec has its parent's lock: of a writer that was killed there, the lock
# outlives it by milliseconds, on a busy machine by more.
_LETTING_GO = 5.0  # seconds
_AGAIN = 0.01


@contextmanager
def writer_lock(workspace: Path) -> Iterator[None]:
    """Hold the writer's lock; missing folders are created, and removed if no workspace came of it.

    Raises:
        WorkspaceLockedError: another process holds it; at once, or after seconds where the writer that it
            names is dead and a child of it has not let go.
        EdgePsloraError: the folder cannot be written to.
    """
    created = make_folders(workspace)
    with storage_errors(workspace, layout.LOCK):
        descriptor = _acquire(workspace)
    try:
        yield
    finally:
        if not (workspace / layout.WORKSPACE_FILE).exists():
            _leave_no_trace(workspace, created)
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # at once, even if a forked child still has it open
        os.close(descriptor)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a lock on any folder, without a file in it: for the time that files there are replaced.

    Raises:
        WorkspaceLockedError: another process holds it (at once, no waiting).
        EdgePsloraError: no such folder.
    """
    with storage_errors(folder, folder.name):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            os.close(descriptor)
            raise WorkspaceLockedError(
                str(folder),
                expected="no other writer",
                found="another process",
                remedy="wait for it to end, then run the same command again",
            ) from problem
        except OSError:
            os.close(descriptor)
            raise
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _acquire(workspace: Path) -> int:
    path = workspace / layout.LOCK
    until = time.monotonic() + _LETTING_GO
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            if _is_gone(holder) and time.monotonic() < until:
                time.sleep(_AGAIN)
                continue
            raise WorkspaceLockedError(
                str(workspace),
                expected="no other writer",
                found=f"process {holder}" if holder else "another process",
                remedy="wait for it to end, then run the same command again",
            ) from problem
        except OSError:
            os.close(descriptor)
            raise
        # its holder may have removed the file between our open and our flock: then lock the new one
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
                return descriptor
        os.close(descriptor)


def _is_gone(holder: str) -> bool:
    """Whether the process of this number has ended; False where it cannot be known."""
    if not holder.isdigit() or int(holder) == 0:
        return False
    try:
        os.kill(int(holder), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _leave_no_trace(workspace: Path, created: list[Path]) -> None:
    """Where no workspace was made: no empty folders, no lock file. Other files stay."""
    staging = workspace / layout.STAGING
    with suppress(OSError):
        if staging.exists():
            staging.rmdir()  # fails, and all stays, when there is something to resume
        (workspace / layout.LOCK).unlink()
        for folder in reversed(created):
            folder.rmdir()
