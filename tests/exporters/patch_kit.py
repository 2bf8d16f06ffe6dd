"""Workspaces whose generations are full exports of tiny models, without training."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from edge_pslora.exporters import onnx_export
from edge_pslora.exporters.onnx_export import export_onnx
from edge_pslora.exporters.onnx_write import write_model
from edge_pslora.training.classifier import Classifier
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.manifest import Manifest
from edge_pslora.workspace.staging import Staged
from edge_pslora.workspace.tensors import write_tensors
from edge_pslora.workspace.workspace import Workspace

# labels of each generation: a head of another size lies elsewhere in the file (1024 bytes and more is
# large), and 16 is also the number of features
LABELS = {"conv": (1, 40), "text": (2, 16, 300), "language": (0, 0)}


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.two = nn.Conv2d(16, 16, 3)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.two(self.norm(self.one(pixel_values)).relu()).mean((2, 3))
        return features


class Text(nn.Module):
    """An embedding, packed attention, Linear layers, and a constant of more than 1024 bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16)
        self.register_buffer("table", torch.arange(512.0).reshape(32, 16) / 512, persistent=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids) + self.table[: input_ids.shape[1]]
        x = x + self.attention(x, x, x)[0]
        features: torch.Tensor = (x + self.down(self.up(x).relu())).mean(1)
        return features


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.out = nn.Linear(16, 50)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.out(self.embed(input_ids).cumsum(1))
        return logits


# of each kind: module, weights that sessions train, free axes
KINDS: dict[str, tuple[type[nn.Module], tuple[str, ...], tuple[str, ...]]] = {
    "conv": (Conv, ("two.weight", "norm.weight", "norm.bias"), ("batch",)),
    "text": (Text, ("embed.weight", "attention.in_proj_weight"), ("batch", "sequence")),
    "language": (Language, ("embed.weight",), ("batch", "sequence")),
}


@dataclass(frozen=True)
class Made:
    """A generation: its classifier, and what was exported in full: one file, and two."""

    number: int
    classifier: Classifier
    metadata: dict[str, str]
    one: Path
    two: Path

    def arrays(self) -> dict[str, np.ndarray]:
        layout = json.loads(_metadata_of(self.one)["pslora.layout"])
        state = self.classifier.state_dict()
        return {name: state[name].numpy() for name in layout}


def _metadata_of(path: Path) -> dict[str, str]:
    return {p.key: p.value for p in onnx.load(path, load_external_data=False).metadata_props}


def example(kind: str, number: int) -> dict[str, torch.Tensor]:
    """Of another length in each generation."""
    if kind == "conv":
        return {"pixel_values": torch.randn(2, 3, 8, 8)}
    return {"input_ids": torch.randint(0, 50, (2, 4 + number))}


def classifier_of(kind: str, number: int) -> Classifier:
    """The first generation's weights, those that are trained replaced number - 1 times."""
    torch.manual_seed(0)
    module, trained, _ = KINDS[kind]
    backbone = module()
    torch.manual_seed(number)
    with torch.no_grad():
        for name in trained if number > 1 else ():
            backbone.get_parameter(name).normal_()
    labels = LABELS[kind][number - 1]
    head = nn.Linear(16, labels) if labels else nn.Identity()
    return Classifier(backbone, head, kind == "conv").eval()


def export(kind: str, number: int, one: Path, two: Path, base_digest: str) -> dict[str, str]:
    """A full export into `one`, and the same traced model in two files; its metadata."""
    given = example(kind, number)
    metadata = {
        "pslora.generation": str(number),
        "pslora.base_digest": base_digest,
        "pslora.labels": json.dumps([f"label {i}" for i in range(LABELS[kind][number - 1])]),
    }

    def write_both(model: ir.Model, path: Path, external_data: bool | None) -> Path | None:
        values = list(model.graph.initializers.values())
        weights = [value.const_value for value in values]
        write_model(model, two, True)  # consumes the weights; tracing again would take much longer
        for value, weight in zip(values, weights, strict=True):
            value.const_value = weight
        return write_model(model, path, external_data)

    axes = dict.fromkeys(given, KINDS[kind][2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "write_model", write_both)
        export_onnx(classifier_of(kind, number), given, axes, one, metadata=metadata)
    return metadata


def new_workspace(kind: str, path: Path) -> Workspace:
    """Without a generation; its base digest depends on the kind alone."""
    path.mkdir(parents=True)
    base = Workspace.stage_base(path)
    write_tensors(base / "model.safetensors", {"x": np.ones(3, np.float32)}, {"format": "pt"})
    (base / "config.json").write_text(json.dumps({"model_type": kind}))
    source = {"kind": "factory", "modality": "table", "reference": "r", "options": {}}
    return Workspace.create(path, base, task_type="classification", labels=(), source=source)


def publish(opened: Workspace, staged: Staged, metadata: dict[str, str]) -> Generation:
    """What lies in the staging folder, as a generation."""
    content = Manifest(
        number=staged.number,
        parent=staged.number - 1 or None,
        task="t",
        created="2026-01-31T12:00:00Z",
        data_digest="",
        base_digest=opened.header.base_digest,
        labels=tuple(json.loads(metadata["pslora.labels"])),
    )
    return opened.publish(staged.folder, content)


def workspace_of(kind: str, folder: Path) -> tuple[Workspace, list[Made]]:
    """Generations in folder/w, and in folder/two-1, ... as the exporter writes them in two files."""
    opened = new_workspace(kind, folder / "w")
    made = []
    for number in range(1, len(LABELS[kind]) + 1):
        staged = opened.begin(hashlib.sha256(str(number).encode()).hexdigest())
        two = folder / f"two-{number}" / "model.onnx"
        two.parent.mkdir()
        path = staged.folder / "model.onnx"
        metadata = export(kind, number, path, two, opened.header.base_digest)
        one = publish(opened, staged, metadata).path / "model.onnx"
        made.append(Made(number, classifier_of(kind, number), metadata, one, two))
    return opened, made


def files_of(folder: Path) -> dict[str, bytes]:
    """Name -> content of the files in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def deploy(source: Path, folder: Path) -> Path:
    """A copy of a model and its data in a new folder."""
    folder.mkdir(parents=True)
    for path in source.parent.glob("model.onnx*"):
        shutil.copy(path, folder)
    return folder / "model.onnx"


def full(made: Made, two: bool) -> dict[str, bytes]:
    """The bytes of a full export."""
    source = made.two if two else made.one
    return {p.name: p.read_bytes() for p in source.parent.glob("model.onnx*")}
