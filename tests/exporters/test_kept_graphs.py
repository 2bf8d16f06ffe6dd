"""What tests/graph_kit.py takes over is what torch.export would find, and never for another module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edge_pslora.exporters import onnx_export
from edge_pslora.exporters.onnx_trace import Request
from tests import graph_kit

pytest.importorskip("onnxscript")
AXES = {"x": ("batch",)}


class Net(nn.Module):
    """Rows [N, 6] -> scores [N, 3]."""

    def __init__(
        self, act: Any = F.relu, times: Any = 2, offset: float = 1.0, wide: int = 8
    ) -> None:
        super().__init__()
        self.act, self.times = act, times
        self.norm = nn.LayerNorm(6)
        self.one, self.two = nn.Linear(6, wide), nn.Linear(wide, 3)
        self.register_buffer("scale", torch.rand(6) + 1)  # stored, as a weight is
        self.register_buffer("offset", torch.full((6,), offset), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(int(self.times)):
            x = self.norm(x / self.scale + self.offset)
        scores: torch.Tensor = self.two(self.act(self.one(x)))
        return scores


class Other(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -super().forward(x)


def net(seed: int, build: Callable[..., nn.Module] = Net, **more: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build(**more).eval()


def request(module: nn.Module, rows: int = 2, opset: int = 18) -> Request:
    return Request(module, {"x": torch.zeros(rows, 6)}, AXES, opset)


def written(module: nn.Module, folder: Path) -> bytes:
    folder.mkdir()
    example = {"x": torch.zeros(2, 6)}
    files = onnx_export.export_onnx(
        module, example, AXES, folder / "model.onnx", metadata={"a": "b"}
    )
    return files.model.read_bytes()


def test_the_second_file_has_the_bytes_of_a_full_export(tmp_path, monkeypatch):
    full = [written(net(seed), tmp_path / f"full{seed}") for seed in (0, 1)]
    assert full[0] != full[1]
    traced, real = [], onnx_export.by_export
    monkeypatch.setattr(graph_kit, "_kept", {})
    monkeypatch.setattr(onnx_export, "by_export", lambda r: (traced.append(r), real(r))[1])
    with graph_kit.graphs_kept():
        kept = [written(net(seed), tmp_path / f"kept{seed}") for seed in (0, 1)]
        assert len(traced) == 1
        written(net(0, times=1), tmp_path / "other")
    assert kept == full
    assert len(traced) == 2


def test_what_computes_something_else_is_another_graph():
    def without_bias(seed: int) -> nn.Module:
        module = net(seed)
        module.two.bias = None
        return module

    def tied(seed: int) -> nn.Module:
        module = net(seed, wide=6)
        module.extra = nn.Linear(6, 6)
        module.extra.weight = module.one.weight
        return module

    def not_tied(seed: int) -> nn.Module:
        module = net(seed, wide=6)
        module.extra = nn.Linear(6, 6)
        return module

    def another_epsilon(seed: int) -> nn.Module:
        module = net(seed)
        module.norm.eps = 0.1
        return module

    def in_training(seed: int) -> nn.Module:
        return net(seed).train()

    builds = [
        net, without_bias, tied, not_tied, another_epsilon, in_training,
        lambda seed: net(seed, Other),
        lambda seed: net(seed, act=F.gelu),
        lambda seed: net(seed, times=1),
        lambda seed: net(seed, times=1.0),
        lambda seed: net(seed, times=True),
        lambda seed: net(seed, offset=2.0),
        lambda seed: net(seed, wide=7),
    ]  # fmt: skip
    keys = [graph_kit.built_as(request(build(0))) for build in builds]
    keys += [
        graph_kit.built_as(request(net(0), rows=3)),
        graph_kit.built_as(request(net(0), opset=20)),
    ]
    assert len(set(keys)) == len(keys)
    # whatever their weights, and the buffers that are stored with them
    assert [graph_kit.built_as(request(build(1))) for build in builds] == keys[: len(builds)]


def test_what_cannot_be_compared_is_traced_each_time():
    factor = 2.0
    for unknown in (lambda x: factor * x, object(), [object()], {"a": iter(())}):
        with pytest.raises(graph_kit.UnknownError):
            graph_kit.built_as(request(net(0, act=unknown)))
