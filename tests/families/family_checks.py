"""What has to hold for a workspace of any family: a device computes what torch computes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_pslora import AdaptConfig, TrainConfig, Workspace
from edge_pslora.exporters.export import export_generation
from edge_pslora.exporters.export_options import ExportOptions
from edge_pslora.exporters.run import OnnxRunner, open_onnx
from edge_pslora.models.load import load_model
from edge_pslora.models.types import LoadedModel
from edge_pslora.pipeline.memory_files import HEAD_NAME, load_memory, load_merged
from edge_pslora.pipeline.opening import source_from_dict
from edge_pslora.training.classifier import Classifier, linear_head
from edge_pslora.workspace.tensors import read_tensors
from tests.torch_free import TorchFree, assert_the_device_agrees

CONFIG = AdaptConfig(train=TrainConfig(epochs=1, learning_rate=2e-3, max_length=16))
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Served:
    """The generation that serves, as torch and as onnxruntime have it."""

    model: LoadedModel
    classifier: Classifier
    onnx: OnnxRunner
    device: TorchFree


def served(workspace: Path, device: TorchFree) -> Served:
    opened = Workspace.open(workspace)
    generation = opened.published(None)
    model = load_model(source_from_dict(opened.header.source), opened.base)
    load_merged(model, generation)
    head = load_memory(generation).head
    classifier = Classifier(model.backbone, linear_head(head.weight, head.bias)).eval()
    return Served(model, classifier, open_onnx(generation.file("model.onnx")), device)


def assert_parity(found: Served, batches: Iterable[Mapping[str, torch.Tensor]]) -> None:
    """Equal logits on every batch, without torch too, and logits that depend on the input."""
    batches = list(batches)
    assert_the_device_agrees(found.device, found.onnx.path, found.classifier, batches)
    for batch in batches:
        logits = found.onnx.run({name: value.numpy() for name, value in batch.items()})
        if len(logits) > 1:
            assert np.ptp(logits, axis=0).max() > 1e-3, "every sample has the same logits"


def changed_tensors(workspace: Path) -> set[str]:
    """Names in the file of the tensors that a first generation does not share with its base."""
    opened = Workspace.open(workspace)
    base = read_tensors(opened.base / "model.safetensors")
    merged = read_tensors(opened.published(None).file("model.safetensors"))
    return {
        name
        for name, value in merged.items()
        if name not in base or not np.array_equal(value, base[name])
    }


def assert_only_changed(found: Served, workspace: Path, targets: Iterable[str]) -> None:
    """Nothing but the adapted weights and the head is another one: norms and statistics are frozen."""
    names = found.model.file_names
    head = found.model.base_head.module_name if found.model.base_head else HEAD_NAME
    expected = {names[f"{target}.weight"] for target in targets}
    assert {n for n in changed_tensors(workspace) if not n.startswith(head)} == expected


def assert_transformers_agrees(
    workspace: Path, out: Path, auto: Any, batch: Mapping[str, torch.Tensor]
) -> None:
    """The exported folder, loaded by transformers alone, gives the logits of the ONNX file."""
    export_generation(workspace, out, ExportOptions("safetensors"))
    model, report = auto.from_pretrained(out, local_files_only=True, output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[problem], (problem, report[problem])
    with torch.no_grad():
        expected = model.eval()(**batch).logits.numpy()
    runner = open_onnx(Workspace.open(workspace).published(None).file("model.onnx"))
    logits = runner.run({name: value.numpy() for name, value in batch.items()})
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=TOLERANCE)


def ends(names: Iterable[str], expected: tuple[str, ...]) -> set[str]:
    """The ends among `expected` that the names have; every name must have one."""
    found = set()
    for name in names:
        fits = [end for end in expected if name.endswith("." + end)]
        assert fits, f"{name} is a target, which is none of {expected}"
        found.add(fits[0])
    return found
