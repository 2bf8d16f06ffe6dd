"""Every family of image models, with and without a head, from its folder to a proven ONNX file."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge_pslora import AdaptResult, Workspace, adapt
from edge_pslora.data.types import Samples
from edge_pslora.training.norms import norm_parameters
from tests.families import family_kit
from tests.families.family_checks import (
    CONFIG,
    Served,
    assert_only_changed,
    assert_parity,
    assert_transformers_agrees,
    changed_tensors,
    ends,
    served,
)
from tests.pipeline import pipeline_kit as kit
from tests.torch_free import TorchFree

transformers = pytest.importorskip("transformers")

LABELS = ("digit 0", "digit 1")
VIT = ("q_proj", "v_proj", "mlp.fc1", "mlp.fc2")
TARGETS = {
    "vit": VIT,
    "deit": VIT,
    "dinov2": VIT,
    "swin": VIT,
    "convnext": ("pwconv1", "pwconv2"),
}
CASES = [
    *((name, headed) for name in ("vit", "convnext", "resnet") for headed in (False, True)),
    *(("deit", True), ("dinov2", False), ("swin", True), ("mobilenet-v1", False)),
    *(("mobilenet-v1", True), ("mobilenet-v2", True)),
]
SLOW = pytest.mark.slow


def batches(found: Served, pictures: Path) -> list[dict[str, torch.Tensor]]:
    files = sorted(pictures.rglob("*.png"))[::3][:6]
    encoded = found.model.encoder.encode(
        Samples("image", "classification", files, np.array([LABELS[0]] * len(files)))
    )
    return [encoded.batch(np.array([0])), encoded.batch(np.arange(1, 6))]


def learn(folder: Path, base: Path | None, digits: tuple[int, ...], n: int = 30) -> AdaptResult:
    data = kit.write_images(folder / "".join(map(str, digits)), digits, n)
    model = None if base is None else str(base)
    return adapt(data, model=model, workspace=folder / "w", config=CONFIG)


def upper_two_thirds(model: nn.Module) -> list[str]:
    """What `auto` means for a network of convolutions; depthwise ones do not count."""
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and getattr(module, "groups", 1) == 1
    ]
    return layers[-math.floor(len(layers) * 2 / 3) :]


@pytest.mark.parametrize(
    ("name", "headed"),
    [pytest.param(*case, marks=SLOW if "mobilenet" in case[0] else ()) for case in CASES],
)
def test_an_image_family(tmp_path: Path, device: TorchFree, name: str, headed: bool) -> None:
    labels = LABELS if headed else None
    base = family_kit.IMAGE_FAMILIES[name](tmp_path / "model", labels=labels)
    assert (base / "model.safetensors").stat().st_size < 300_000
    result = learn(tmp_path, base, (0, 1))
    assert result.promoted, result.reason
    assert result.metrics["onnx_agreement"] == 1.0
    targets = [layer["name"] for layer in result.metrics["layers"]]
    found = served(tmp_path / "w", device)
    assert found.model.notes == ()
    if name in TARGETS:
        assert ends(targets, TARGETS[name]) == set(TARGETS[name])
    else:
        assert targets == upper_two_thirds(found.model.backbone.model)
    one, five = batches(found, tmp_path / "01")
    assert (len(one["pixel_values"]), len(five["pixel_values"])) == (1, 5)
    assert_parity(found, (one, five))
    assert_only_changed(found, tmp_path / "w", targets)
    if headed:
        auto = transformers.AutoModelForImageClassification
        assert_transformers_agrees(tmp_path / "w", tmp_path / "out", auto, five)


@pytest.mark.slow
def test_batch_norms_are_trained_on_request_and_their_statistics_never(
    tmp_path: Path, device: TorchFree
) -> None:
    base = family_kit.IMAGE_FAMILIES["resnet"](tmp_path / "model")
    data = kit.write_images(tmp_path / "data", (0, 1), 30)
    config = replace(CONFIG, train=replace(CONFIG.train, train_norms=True))
    result = adapt(data, model=str(base), workspace=tmp_path / "w", config=config)
    assert result.promoted, result.reason
    found = served(tmp_path / "w", device)
    norms = set(norm_parameters(found.model.backbone.model))
    changed = changed_tensors(tmp_path / "w")
    assert {found.model.file_names[name] for name in norms} <= changed
    assert not any("running_" in name or "num_batches" in name for name in changed)
    assert_parity(found, batches(found, data))


def test_a_second_session_with_new_labels(tmp_path: Path, device: TorchFree) -> None:
    base = family_kit.IMAGE_FAMILIES["convnext"](tmp_path / "model", labels=LABELS)
    results = [learn(tmp_path, base, (0, 1)), learn(tmp_path, None, (1, 4))]
    assert results[1].generation == results[0].generation + 1
    assert results[1].metrics["labels"] == [*LABELS, "digit 4"]
    generation = Workspace.open(tmp_path / "w").generation(results[1].generation)
    assert generation.labels == (*LABELS, "digit 4")
    assert results[1].promoted, results[1].reason
    found = served(tmp_path / "w", device)
    assert_parity(found, batches(found, tmp_path / "14"))
