"""Workspaces with made-up manifests, and the tables of a page as figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from edge_pslora.workspace import refusals
from edge_pslora.workspace.lock import writer_lock
from edge_pslora.workspace.manifest import Manifest
from edge_pslora.workspace.tensors import write_tensors
from edge_pslora.workspace.workspace import Workspace

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=y>&amp; $x_1$ \x1b[31m 漢字"
KINDS = ("query", "key", "value", "output")


def task_name(number: int) -> str:
    return HOSTILE if number == 1 else f"subject {number:02d}"


def metrics(number: int, layers: int, metric: str = "accuracy") -> dict[str, Any]:
    """What a manifest says: 25 tasks at most, then the same people come again."""
    rng = np.random.default_rng(number)
    tasks = [task_name(i) for i in range(1, min(number, 25) + 1)]
    return {
        "metric": metric,
        "sessions": number,
        "samples": 100 + number,
        "reason": "not significantly worse on holdout and anchor set",
        "accuracy_before": None if number == 1 else 0.5,
        "accuracy_after": float(rng.uniform(0.8, 0.97)),
        "anchor_before": None if number == 1 else 0.9,
        "anchor_after": None if number == 1 else 0.875,
        "retention": None if number == 1 else 0.875 / 0.9,
        "history_bytes": min(1000 * number, 9000),
        "tasks": tasks,
        "accuracy_by_task": {t: float(rng.uniform(0.6, 0.95)) for t in tasks},
        "layers": [
            {
                "name": f"encoder.layer.{i // 4}.attention.self.{KINDS[i % 4]}",
                "relative_norm": float(rng.uniform(0.001, 0.02)),
                "kept_past": float(rng.uniform(0, 0.4)),
                "sign_conflict": None if number == 1 else float(rng.uniform(0.4, 0.6)),
            }
            for i in range(layers)
        ],
    }


def make_workspace(
    path: Path, generations: int, *, layers: int = 4, metric: str = "accuracy", refused: int = 0
) -> Workspace:
    """Published generations, the last one current; before generation 2 some refused sessions."""
    with writer_lock(path):
        base = Workspace.stage_base(path)
        write_tensors(base / "model.safetensors", {"w": np.ones((2, 2), np.float32)}, {})
        kind = "regression" if metric == "r2" else "classification"
        source = {"kind": "auto", "modality": "table", "reference": "", "options": {}}
        workspace = Workspace.create(path, base, task_type=kind, labels=(), source=source)
        for number in range(1, generations + 1):
            for i in range(refused if number == 2 else 0):
                refuse(workspace, f"bad day {i}", run=f"bad {i}")
            publish(workspace, metrics(number, layers, metric))
    return workspace


def publish(workspace: Workspace, found: dict[str, Any]) -> None:
    current = workspace.current()
    staged = workspace.begin(f"good {found.get('sessions')}")
    (staged.folder / "report.html").write_text("<p>of one", encoding="utf-8")
    (staged.folder / "history.safetensors").write_bytes(b"h" * 1000)
    if before := refusals.read(staged.scratch):
        found = found | {"refused_before": before}
    number = staged.number
    manifest = Manifest(
        number=number,
        parent=None if current is None else current.number,
        task=task_name(number),
        created=f"2026-01-{min(number, 28):02d}T12:00:00Z",
        data_digest="",
        base_digest=workspace.header.base_digest,
        labels=tuple(f"label {i}" for i in range(number)),
        config={"budget": {"history_bytes": 10_000}},
        metrics=found,
    )
    workspace.publish(staged.folder, manifest)


def refuse(workspace: Workspace, task: str, run: str) -> None:
    current = workspace.current()
    staged = workspace.begin(run)
    (staged.folder / "model.onnx").write_bytes(b"x")
    record = refusals.record_of(
        {"metric": "accuracy", "samples": 7, "accuracy_after": 0.25, "labels": ["not kept"]},
        task=task,
        created="2026-01-01T13:00:00Z",
        parent=None if current is None else current.number,
        reason=f"labels of {task} do not follow from inputs",
    )
    workspace.refuse(staged.folder, record)


@dataclass
class Tables(HTMLParser):
    """figures[id of the figure or section] -> rows of cells: the exact value, or the text."""

    page: str
    figures: dict[str, list[list[float | str]]] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._place = ""
        self._cell: float | str | None = None
        self.feed(self.page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.names += [name for name, _ in attrs]
        if tag in ("figure", "section", "div") and found.get("id"):
            self._place = str(found["id"])
        elif tag == "tr":
            self.figures.setdefault(self._place, []).append([])
        elif tag in ("th", "td"):
            self._cell = ""
        elif tag == "data" and self._cell is not None:
            self._cell = float(str(found["value"]))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "td") and self._cell is not None:
            self.figures[self._place][-1].append(self._cell)
            self._cell = None

    def handle_data(self, data: str) -> None:
        self.text += data
        if isinstance(self._cell, str):
            self._cell += data
