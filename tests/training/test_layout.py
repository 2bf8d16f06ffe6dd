"""Pictures with channels last: the same features, the same rows below the cut, and only where it works."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import ArrayInputs, TinyBackbone
from torch import nn

from edge_pslora.training import layout
from edge_pslora.training.half_base import half_base
from edge_pslora.training.layout import channels_last, is_channels_last, is_laid, suits
from edge_pslora.training.prefix_cut import Cut, find_cut, holds_in_half


class Network(nn.Module):
    """[N, 3, 8, 8] through four convolutions; what it is given is noted."""

    def __init__(self, ending: str = "mean") -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8)
        self.three, self.top = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
        self.ending, self.given = ending, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.given = is_channels_last(x)
        x = self.top(self.three(self.two(self.one(x)).relu()).relu())
        if self.ending == "view":
            return x.view(len(x), -1)
        return x.mean((2, 3)) + (1.0 if self.ending == "other" and self.given else 0.0)


def _network(ending: str = "mean") -> TinyBackbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TinyBackbone(Network(ending)).eval().requires_grad_(False)


@pytest.fixture
def pictures() -> ArrayInputs:
    return ArrayInputs(np.random.default_rng(0).normal(size=(9, 3, 8, 8)).astype(np.float32))


@pytest.mark.parametrize(
    ("ending", "expected"), [("mean", True), ("view", False), ("other", False)]
)
def test_it_is_taken_where_the_features_stay(ending, expected, pictures):
    backbone = _network(ending)
    assert suits(backbone, pictures) is expected
    assert not is_laid(backbone)
    assert "forward" not in backbone.__dict__


def test_a_model_without_convolutions_or_pictures_is_left_alone(pictures, monkeypatch):
    assert not suits(TinyBackbone(nn.Flatten()), pictures)
    monkeypatch.setattr(layout, "LEAST_CONVOLUTIONS", 0)
    rows = ArrayInputs(pictures.rows.reshape(9, -1))
    assert not suits(TinyBackbone(nn.Linear(192, 4)), rows)


def test_layers_below_the_cut_compute_the_same_bits_in_and_out_of_steps(pictures):
    backbone = _network()
    batch = pictures.batch(np.arange(9))
    with channels_last(backbone):
        cut = find_cut(backbone, [backbone.model.top.weight], pictures)
        assert isinstance(cut, Cut)
        assert holds_in_half(backbone, cut, pictures)
        seen = []
        hook = backbone.model.three.register_forward_hook(lambda m, a, output: seen.append(output))
        with torch.no_grad():
            backbone(**batch)
            assert backbone.model.given
            with half_base(backbone, {}, cut.modules):
                backbone(**batch)
        hook.remove()
    assert seen[0].dtype == seen[1].dtype == torch.float32
    assert torch.equal(*seen)
    with channels_last(backbone, wanted=False):
        backbone(**batch)
        assert not backbone.model.given
