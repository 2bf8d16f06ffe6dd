"""Small workspaces without a model, and the work of a writer on one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge_pslora.workspace.durable import make_folder
from edge_pslora.workspace.lock import writer_lock
from edge_pslora.workspace.manifest import Manifest
from edge_pslora.workspace.tensors import write_tensors
from edge_pslora.workspace.workspace import Workspace


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
        workspace.rollback()
        number, folder, _ = workspace.begin("fourth")
        fill(folder, number)
        workspace.refuse(folder)
        workspace.begin("fifth")
