"""Scenes that need no torch: a run costs some hundredths of a second. The quick forms use these alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

# what the commands import when they are called: here once, not in each forked child
from edge_pslora import merge_files  # noqa: F401
from edge_pslora.cli.main import app  # noqa: F401
from edge_pslora.errors import EdgePsloraError
from edge_pslora.exporters.export import export_generation
from edge_pslora.exporters.export_options import ExportOptions
from edge_pslora.update import replay as update_replay  # noqa: F401
from edge_pslora.workspace.durable import write_bytes
from edge_pslora.workspace.lock import writer_lock
from edge_pslora.workspace.pointer import NOTHING, replace_pointer
from edge_pslora.workspace.workspace import Workspace
from tests.torture.acts import Scene, Work, command
from tests.update.delta_kit import ship
from tests.workspace import merge_kit
from tests.workspace import workspace_driver as driver

LARGE = 5000  # bytes of a file that tears at 512 and at 4096


def file_scenes() -> list[Scene]:
    w = {"workspace": "w"}
    out = {"outputs": ("out",), "window": ("out",)}
    merge = command(
        *("merge", "one", "two", "--base", "base.safetensors", "--out", "merged.safetensors")
    )
    replay = command(
        *("replay", "delta.safetensors", "--base", "base.safetensors"),
        *("--parent", "parent.safetensors", "--out", "new.safetensors"),
    )
    export = ("export", "w", "out", "--overwrite", "--format")
    return [
        Scene("create", lambda folder: None, _one_line(_create), "deep/er/w"),
        Scene("publish", _workspace, _locked(_publish), grows=True, **w),
        Scene("refuse", _refused, _locked(_refuse), **w),
        Scene("rollback", _workspace, command("rollback", "w", "--to", "1"), **w),
        Scene("merge", _adapters, merge, outputs=("merged.safetensors",)),
        Scene("replay", _shipment, replay, outputs=("new.safetensors",)),
        Scene("export copy", _exported, command(*export, "onnx"), **w, **out),
    ]


def _one_line(work: Work) -> Work:
    """Errors end it as they end the command line."""

    def caught() -> int:
        try:
            return work()
        except EdgePsloraError as error:
            print(error, file=sys.stderr)
            return int(error.to_dict()["exit_code"])

    return caught


def _locked(work: Work) -> Work:
    def locked() -> int:
        with writer_lock(Path("w")):
            code = work()
        print("done", flush=True)
        return code

    return _one_line(locked)


def _create() -> int:
    path = Path("deep/er/w")
    if Workspace.exists(path):  # as a session does that goes on with what a killed one left
        with writer_lock(path):
            replace_pointer(path, NOTHING)
    else:
        driver.make_workspace(path)
    print("done", flush=True)
    return 0


def _publish() -> int:
    workspace = Workspace.open(Path("w"))
    if workspace.recover("third") is None:
        number, folder, _ = workspace.begin("third")
        _fill(folder, number)
        workspace.publish(folder, driver.manifest_for(workspace, number))
    return 0


def _refuse() -> int:
    workspace = Workspace.open(Path("w"))
    number, folder, _ = workspace.begin("bad")
    _fill(folder, number)
    workspace.refuse(folder)
    return 0


def _fill(folder: Path, number: int) -> None:
    driver.fill(folder, number)
    write_bytes(folder / "model.onnx", _content(number))


def _content(seed: int, size: int = LARGE) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def _workspace(folder: Path) -> None:
    """Two generations."""
    workspace = driver.make_workspace(folder / "w")
    with writer_lock(folder / "w"):
        for name in ("first", "second"):
            number, staged, _ = workspace.begin(name)
            _fill(staged, number)
            workspace.publish(staged, driver.manifest_for(workspace, number))


def _refused(folder: Path) -> None:
    """And another that was refused."""
    _workspace(folder)
    workspace = Workspace.open(folder / "w")
    with writer_lock(folder / "w"):
        _, staged, _ = workspace.begin("worse")
        _fill(staged, 9)
        workspace.refuse(staged)


def _exported(folder: Path) -> None:
    """And an earlier export, which is replaced."""
    _workspace(folder)
    options = ExportOptions("onnx")
    export_generation(folder / "w", folder / "out", options, generation=1)


def _adapters(folder: Path) -> None:
    merge_kit.make_base(folder / "base.safetensors")
    for seed, name in enumerate(("one", "two")):
        merge_kit.make_adapter(folder / name, merge_kit.factors(seed))
    (folder / "merged.safetensors").write_bytes(_content(0))


def _shipment(folder: Path) -> None:
    ship(folder)
    (folder / "child.safetensors").unlink()
    (folder / "new.safetensors").write_bytes(_content(1))
