"""A publisher and devices with models of a few hundred numbers, made without training and without torch.

The model reads x [N, 4]: h = x @ body, logits = h @ head.T; the label is the largest of the first C
numbers of x. `swapped` gives the right answers to the wrong labels.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_pslora.device.apply import Report, Request, apply
from edge_pslora.device.health import HealthCheck
from edge_pslora.exporters import onnx_file
from edge_pslora.exporters.export_bundle import BundleOptions, export_bundle
from edge_pslora.exporters.onnx_file import LAYOUT_KEY, Values
from edge_pslora.signing.keys import load_signers, make_keys
from edge_pslora.workspace.durable import new_file
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.lock import writer_lock
from edge_pslora.workspace.manifest import Manifest
from edge_pslora.workspace.tensors import write_tensors
from edge_pslora.workspace.workspace import Workspace
from tests.signing.signing_kit import soon

LABELS = ("a", "b")
BODY = np.concatenate([np.eye(4, dtype=np.float32), np.zeros((4, 60), np.float32)], axis=1)
HEALTHY = HealthCheck(("true",), 10, 0)
SICK = HealthCheck(("false",), 10, 0)


def head(labels: int = 2, *, swapped: bool = False) -> np.ndarray:
    weight = np.zeros((labels, 64), np.float32)
    weight[np.arange(labels), np.arange(labels)[::-1] if swapped else np.arange(labels)] = 1
    return weight


def write_onnx(
    path: Path, weight: np.ndarray, *, nodes: Any = None, external: str = "", generation: int = 1
) -> None:
    """model.onnx laid out as ours are; nodes: others than the model's own; external: where a small
    weight says that it lies."""
    named = {"body": BODY, "head.weight": weight, "head.bias": np.zeros(len(weight), np.float32)}
    graph = helper.make_graph(
        nodes
        or [
            helper.make_node("MatMul", ["x", "body"], ["h"]),
            helper.make_node("Gemm", ["h", "head.weight", "head.bias"], ["logits"], transB=1),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", None])],
        [numpy_helper.from_array(array, name) for name, array in named.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    layout = {name: {"source": name, "transform": "identity"} for name in named}
    texts = {LAYOUT_KEY: json.dumps(layout), "pslora.generation": str(generation)}
    for key, value in sorted(texts.items()):
        model.metadata_props.add(key=key, value=value)
    if external:
        bias = model.graph.initializer[2]
        bias.ClearField("raw_data")
        onnx_file.refer(bias, external, 0, 8)
    large = {name: Values(array) for name, array in named.items() if array.nbytes >= 1024}
    parts = onnx_file.plan(model, {name: value.nbytes for name, value in large.items()}, None).model
    with new_file(path) as append:
        onnx_file.emit(parts, large, append)


def constant(name: str, array: np.ndarray) -> Any:
    """A node."""
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name))


def loop_for_ever() -> list[Any]:
    """while true: i += 1"""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["v", "v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, ["batch", 4]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, ["batch", 4]),
        ],
    )
    return [
        constant("true", np.array(True)),
        helper.make_node("Loop", ["", "true", "x"], ["logits"], body=graph),
    ]


def anchors(count: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    return x, x[:, :2].argmax(axis=1)


def write_anchors(path: Path) -> None:
    x, target = anchors()
    arrays = {"input.x": x, "target": target.astype(np.int32), "session": np.ones(40, np.int32)}
    write_tensors(path, arrays, {"labels": json.dumps(list(LABELS))})


@dataclass(frozen=True)
class Publisher:
    """A folder with a workspace, keys and bundles."""

    path: Path
    root: Path
    keys: tuple[Path, ...]

    @property
    def workspace(self) -> Workspace:
        return Workspace.open(self.path / "pub")

    def add(self, weight: np.ndarray, *, labels: tuple[str, ...] = LABELS, **model: Any) -> int:
        """One more generation, with anchors, served; model: for write_onnx."""
        opened = self.workspace
        with writer_lock(opened.path):
            staged = opened.begin("0" * 64)
            write_onnx(staged.folder / "model.onnx", weight, generation=staged.number, **model)
            bias = np.zeros(len(weight), np.float32)
            tensors = {"body": BODY, "pslora_head.weight": weight, "pslora_head.bias": bias}
            write_tensors(staged.folder / "model.safetensors", tensors, {"format": "pt"})
            write_anchors(staged.folder / "anchor.safetensors")
            current = opened.current()
            content = Manifest(
                number=staged.number,
                parent=None if current is None else current.number,
                task=f"task {staged.number}",
                created="2026-01-02T03:04:05Z",
                data_digest="",
                base_digest=opened.header.base_digest,
                labels=labels,
                metrics={"accuracy_after": 0.5},
                counter=staged.number,
            )
            return opened.publish(staged.folder, content).number

    def bundle(
        self,
        name: str,
        number: int,
        *,
        keys: tuple[int, ...] = (0, 1),
        now: datetime | None = None,
        **options: Any,
    ) -> Path:
        """A full bundle in folder `name`; options: of BundleOptions."""
        given = {"kind": "full", "with_base": True, "learn": True, "counter": number} | options
        export_bundle(
            self.path / "pub",
            self.path / name,
            load_signers([self.keys[index] for index in keys]),
            replace(BundleOptions(), **given),
            root=self.root,
            generation=number,
            now=now,
        )
        return self.path / name


def make_publisher(path: Path) -> Publisher:
    """Without a generation."""
    path.mkdir()
    keys = make_keys(path / "keys", 3, 2, soon(365))
    pub = path / "pub"
    with writer_lock(pub):
        base = Workspace.stage_base(pub)
        write_tensors(base / "model.safetensors", {"body": BODY}, {"format": "pt"})
        source = {"kind": "auto", "modality": "table", "reference": "", "options": {}}
        Workspace.create(pub, base, task_type="classification", labels=(), source=source)
    return Publisher(path, path / "keys" / "root.json", tuple(keys.files))


@dataclass(frozen=True)
class Device:
    """A workspace and the call that updates it."""

    path: Path
    root: Path

    @property
    def workspace(self) -> Workspace:
        return Workspace.open(self.path)

    def apply(self, source: Path | str | None = None, **request: Any) -> Report:
        given = {"root": self.root, "check": HEALTHY} | request
        text = None if source is None else str(source)
        return apply(Request(self.path, text, **given))

    def served(self) -> Generation | None:
        return self.workspace.current()

    def copy(self, path: Path) -> Device:
        shutil.copytree(self.path, path, symlinks=True)
        return Device(path, self.root)


def at(year: int) -> datetime:
    return datetime(year, 1, 1, tzinfo=UTC)


def checked(path: Path) -> onnx.ModelProto:
    """The file as the package reads it, found right by its checker."""
    model = onnx.load(path)
    onnx.checker.check_model(model)
    return model
