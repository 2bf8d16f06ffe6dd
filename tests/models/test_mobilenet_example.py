"""examples/mobilenet_v1.py: its padding, and its fit to the real weights where they are at hand."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from edge_pslora.models.weights import load_into, read_weights

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("EDGE_PSLORA_DATA", ROOT.parent / "shared" / "data"))
WEIGHTS = SHARED.parent / "models" / "mobilenet_v1_1.0_224" / "model.safetensors"


@pytest.fixture
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "mobile_example", ROOT / "examples/mobilenet_v1.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_features_and_sizes(example: ModuleType) -> None:
    net = example.mobilenet_v1().eval()
    with torch.no_grad():
        features = net(torch.rand(2, 3, 64, 64))
    assert features.shape == (2, 1024)
    assert float(features.min()) >= 0
    assert float(features.max()) <= 6


@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_is_tensorflows(stride: int, example: ModuleType) -> None:
    """TensorFlow: pad = max((ceil(n / s) - 1) * s + k - n, 0), the smaller half first."""
    conv = example.SameConv2d(2, 4, 3, stride=stride, bias=False)
    x = torch.rand(1, 2, 8, 8)
    total = max((-(-8 // stride) - 1) * stride + 3 - 8, 0)
    before, after = total // 2, total - total // 2
    expected = F.conv2d(F.pad(x, (before, after, before, after)), conv.weight, stride=stride)
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="the shared MobileNetV1 weights are not here")
def test_the_real_weights_fit(example: ModuleType) -> None:
    load_into(example.mobilenet_v1(), read_weights(WEIGHTS), str(WEIGHTS))
