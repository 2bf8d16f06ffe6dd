"""A process to kill: publishes a generation, rolls back, starts the next run, says how far it got.

Run as `python workspace_driver.py COMMAND ...`; also imported by the tests for its builders.

    kill-nth ROOT COUNT STEP for n = 1, 1 + STEP ... COUNT: fork; the child works on ROOT/n and
                             kills itself just before its n-th changing call of the os module
    strace ROOT COUNT CALL   for n = 1 ... COUNT: fork; the child makes COUNT - n failing CALLs,
                             then works on ROOT/n, so that `strace -e inject=CALL:when=COUNT` kills
                             it at the n-th CALL of its work (strace counts for each process)
    work WORKSPACE           just the work, once
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from edge_pslora.workspace.durable import make_folder
from edge_pslora.workspace.lock import writer_lock
from edge_pslora.workspace.manifest import Manifest
from edge_pslora.workspace.tensors import write_tensors
from edge_pslora.workspace.workspace import Workspace

CHANGING = ("write", "fsync", "rename", "unlink", "mkdir", "rmdir", "ftruncate", "pwrite")
CLOSED = 1_000_000  # a descriptor that no process has open
FAILING = {
    "write": lambda: os.write(CLOSED, b""),
    "fsync": lambda: os.fsync(CLOSED),
    "rename": lambda: os.rename("", ""),  # noqa: PTH104
    "unlink": lambda: os.unlink(""),  # noqa: PTH108
    "unlinkat": lambda: os.unlink("", dir_fd=-100),
    "mkdir": lambda: os.mkdir(""),  # noqa: PTH102
    "rmdir": lambda: os.rmdir(""),  # noqa: PTH106
    "ftruncate": lambda: os.ftruncate(CLOSED, 0),
    "pwrite64": lambda: os.pwrite(CLOSED, b"", 0),
}


def make_workspace(path: Path, labels: tuple[str, ...] = ("cat", "dog")) -> Workspace:
    with writer_lock(path):
        base = Workspace.stage_base(path)
        write_tensors(base / "model.safetensors", {"w": np.arange(6, dtype=np.float32)})
        source = {"kind": "auto", "modality": "table", "reference": "", "options": {}}
        return Workspace.create(
            path, base, task_type="classification", labels=labels, source=source
        )


def fill(folder: Path, value: int) -> None:
    """Files that all state the same value, so that a mix of two generations shows."""
    make_folder(folder / "adapter")
    tensors = {"w": np.full(8, value, np.float32)}
    for name in ("model.safetensors", "history.safetensors", "adapter/adapter_model.safetensors"):
        write_tensors(folder / name, tensors, {"eps": "0.5", "value": str(value)})


def manifest_for(workspace: Workspace, number: int, task: str = "t") -> Manifest:
    current = workspace.current()
    return Manifest(
        number=number,
        parent=None if current is None else current.number,
        task=task,
        created="2026-01-02T03:04:05Z",
        data_digest="",
        base_digest=workspace.header.base_digest,
        labels=("cat", "dog", "owl"),
        metrics={"accuracy": 0.5, "certificate": {"largest_eps": 0.5}},
        counter=number,
    )


def add_generation(workspace: Workspace, digest: str = "run") -> int:
    """One whole run under the caller's lock."""
    number, folder, _ = workspace.begin(digest)
    fill(folder, number)
    return workspace.publish(folder, manifest_for(workspace, number)).number


def work(path: Path) -> None:
    """Publish generation 3, roll back to 2, begin and refuse the next run, begin another."""
    with writer_lock(path):
        workspace = Workspace.open(path)
        add_generation(workspace, "third")
        (path.parent / f"{path.name}.published").touch()
        workspace.rollback()
        (path.parent / f"{path.name}.back").touch()
        number, folder, _ = workspace.begin("fourth")
        fill(folder, number)
        workspace.refuse(folder)
        workspace.begin("fifth")


def main(command: str, *arguments: str) -> None:
    if command == "work":
        work(Path(arguments[0]))
        return
    root, count = Path(arguments[0]), int(arguments[1])
    for n in range(1, count + 1, int(arguments[2]) if command == "kill-nth" else 1):
        child = os.fork()
        if child == 0:
            if command == "strace":
                for _ in range(count - n):
                    with suppress(OSError):
                        FAILING[arguments[2]]()
            else:
                kill_at(n)
            work(root / str(n))
            os._exit(0)
        os.waitpid(child, 0)


def kill_at(n: int) -> None:
    """Make the n-th changing call of the os module the end of this process."""
    calls = 0

    def guarded(real):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in CHANGING:
        setattr(os, name, guarded(getattr(os, name)))


if __name__ == "__main__":
    main(*sys.argv[1:])
