"""A publisher's workspace without training: generations to ship whole or as deltas. No torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from edge_pslora.core.factor_forms import rounded
from edge_pslora.core.replay import low_rank_update, next_weight
from edge_pslora.exporters.lora_factors import LoraFactors
from edge_pslora.exporters.onnx_write import write_model
from edge_pslora.exporters.peft_adapter import write_peft_adapter
from edge_pslora.exporters.peft_format import AdapterConfig
from edge_pslora.workspace.durable import make_folder, write_bytes
from edge_pslora.workspace.lock import writer_lock
from edge_pslora.workspace.manifest import Manifest
from edge_pslora.workspace.tensors import open_tensors, write_tensors
from edge_pslora.workspace.workspace import Workspace

INPUTS, HIDDEN, LABELS, RANK = 16, 40, 3, 2
WEIGHT, HEAD, BIAS = "one.weight", "pslora_head.weight", "pslora_head.bias"
FORMAT = {"format": "pt"}


def make_publisher(path: Path, generations: int = 3, seed: int = 0) -> Workspace:
    """A workspace with that many generations of relu(x W^T) H^T + b, each an update of rank 2 of W."""
    rng = np.random.default_rng(seed)
    with writer_lock(path):
        staged = Workspace.stage_base(path)
        base = {WEIGHT: rng.normal(size=(HIDDEN, INPUTS)).astype(np.float32)}
        write_tensors(staged / "model.safetensors", base, FORMAT)
        source = {"kind": "factory", "modality": "table", "reference": "r", "options": {}}
        opened = Workspace.create(
            path, staged, task_type="classification", labels=(), source=source
        )
    for _ in range(generations):
        add_generation(opened, rng)
    return opened


def add_generation(opened: Workspace, rng: np.random.Generator) -> int:
    """One more, on the current one."""
    with writer_lock(opened.path):
        current = opened.current()
        with open_tensors(opened.base / "model.safetensors") as file:
            base = previous = file.read(WEIGHT)
        if current is not None:
            with open_tensors(current.path / "model.safetensors") as file:
                previous = file.read(WEIGHT)
        number, folder, _ = opened.begin(f"run {len(opened.generations())}")
        A = rounded("int8", rng.normal(size=(RANK, INPUTS)).astype(np.float32))
        B = rounded("int8", 0.1 * rng.normal(size=(RANK, HIDDEN)).astype(np.float32)).T.copy()
        config = AdapterConfig(RANK, 4.0)
        session = 1 if current is None else current.manifest.metrics["sessions"] + 1
        update = low_rank_update(B, A, config.scaling)
        tensors = {
            WEIGHT: next_weight("constructive", base, previous, update, session),
            HEAD: rng.normal(size=(LABELS, HIDDEN)).astype(np.float32),
            BIAS: rng.normal(size=LABELS).astype(np.float32),
        }
        write_tensors(folder / "model.safetensors", tensors, FORMAT)
        make_folder(folder / "adapter")
        layers = {"one": LoraFactors("linear", A, B, config.scaling)}
        write_peft_adapter(folder / "adapter", layers, config)
        write_tensors(folder / "anchor.safetensors", {"x": np.zeros((2, INPUTS), np.float32)})
        write_bytes(folder / "README.md", f"# Generation {number}\n".encode())
        write_bytes(folder / "report.html", b"<html>")
        _write_onnx(folder / "model.onnx", tensors, number, opened.header.base_digest)
        manifest = Manifest(
            number=number,
            parent=None if current is None else current.number,
            task=f"session {number}",
            created="2026-01-31T12:00:00Z",
            data_digest="",
            base_digest=opened.header.base_digest,
            labels=("a", "b", "c"),
            config={"merge": "constructive"},
            metrics={"sessions": session},
            counter=number,
        )
        return opened.publish(folder, manifest).number


def _write_onnx(path: Path, tensors: dict[str, np.ndarray], number: int, base_digest: str) -> None:
    names = {WEIGHT: f"backbone.model.{WEIGHT}", HEAD: "head.weight", BIAS: "head.bias"}
    nodes = [
        helper.make_node("Gemm", ["x", names[WEIGHT]], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", names[HEAD], names[BIAS]], ["logits"], transB=1),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("x", INPUTS), ("logits", LABELS))
    ]
    weights = [numpy_helper.from_array(tensors[n], names[n]) for n in tensors]
    graph = helper.make_graph(nodes, "main", values[:1], values[1:], weights)
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    entries = {n: {"source": n, "transform": "identity"} for n in names.values()}
    metadata = {
        "pslora.base_digest": base_digest,
        "pslora.generation": str(number),
        "pslora.layout": json.dumps(entries, sort_keys=True, separators=(",", ":")),
    }
    onnx.helper.set_model_props(model, metadata)
    write_model(ir.serde.deserialize_model(model), path, None)
