"""A stand-in for the pipeline, and small real workspaces made without torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edge_pslora.workspace.lock import writer_lock
from edge_pslora.workspace.manifest import Manifest
from edge_pslora.workspace.tensors import write_tensors
from edge_pslora.workspace.workspace import Workspace

RESULT = {
    "generation": 2,
    "promoted": True,
    "reason": "better on held-out samples",
    "task": "digits",
    "samples": 100,
    "steps": 12,
    "accuracy_before": 0.5,
    "accuracy_after": 0.9,
    "retention": 0.99,
    "history_bytes": 4096,
    "peak_rss_bytes": 123_000_000,
    "wall_seconds": 3.5,
    "onnx_max_abs_error": 1e-6,
    "files": {"onnx": "w/generations/000002/model.onnx"},
}


@dataclass
class FakePipeline:
    """Records how it was called; returns `facts`, or does what `behave` does."""

    facts: dict[str, Any] = field(default_factory=lambda: dict(RESULT))
    behave: Callable[[], None] = lambda: None
    data: Path | None = None
    given: dict[str, Any] = field(default_factory=dict)

    def adapt(self, data: Path, **given: Any) -> FakePipeline:
        self.data, self.given = data, given
        self.behave()
        return self

    def to_dict(self) -> dict[str, Any]:
        return self.facts


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    """Replaces edge_pslora.pipeline for one test."""
    fake = FakePipeline()
    module = ModuleType("edge_pslora.pipeline")
    module.adapt = fake.adapt  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "edge_pslora.pipeline", module)
    return fake


@contextmanager
def _publication(path: Path, task: str) -> Iterator[Path]:
    with writer_lock(path):
        workspace = Workspace.open(path)
        current = workspace.current()
        staged = workspace.begin("0" * 64)
        yield staged.folder
        workspace.publish(
            staged.folder,
            Manifest(
                number=staged.number,
                parent=None if current is None else current.number,
                task=task,
                created="2026-01-31T12:00:00Z",
                data_digest="",
                base_digest=workspace.header.base_digest,
                labels=("cat", "dog"),
                metrics={"accuracy_after": 0.75, "retention": 1.0},
            ),
        )


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Two published generations, "first" and "second", the second one current."""
    path = tmp_path / "w"
    with writer_lock(path):
        base = Workspace.stage_base(path)
        write_tensors(base / "model.safetensors", {"w": np.ones((2, 2), np.float32)}, {})
        source = {"kind": "auto", "modality": "table", "reference": "", "options": {}}
        Workspace.create(path, base, task_type="classification", labels=(), source=source)
    for task in ("first", "second"):
        with _publication(path, task) as folder:
            (folder / "report.html").write_text(f"<p>{task}", encoding="utf-8")
    return path
