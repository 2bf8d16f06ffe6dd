"""torch.export files: what they become, and what has to be exported otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edge_pslora.data.types import Samples
from edge_pslora.errors import ModelError
from edge_pslora.models.exported import PROGRAM_FILE
from edge_pslora.training.targets import find_targets
from tests.models.pt2_kit import BATCH, load, new_net, new_rows, save


@pytest.fixture
def net() -> nn.Module:
    return new_net()


@pytest.fixture
def rows() -> Samples:
    return new_rows()


def test_it_computes_what_the_module_did_under_the_same_names(net, rows, tmp_path):
    loaded = load(save(tmp_path, net, torch.randn(2, 1, 4, 4)), rows, tmp_path / "base")
    assert loaded.source.kind == "exported"
    assert loaded.source.reference == "net.pt2"
    assert (tmp_path / "base" / PROGRAM_FILE).is_file()
    assert loaded.file_names.keys() | {"head.weight", "head.bias"} == set(net.state_dict())
    net.head = nn.Identity()
    inputs = loaded.encoder.encode(rows).batch(np.arange(6))
    assert torch.equal(loaded.backbone(**inputs), net(torch.from_numpy(rows.inputs)))
    assert loaded.feature_size == 8
    assert loaded.notes == ("The module's last layer head is replaced by a head.",)


def test_layers_are_targets_again(net, rows, tmp_path):
    model = load(save(tmp_path, net, torch.randn(2, 1, 4, 4)), rows, tmp_path / "base").backbone
    kinds = {t.name: t.kind for t in find_targets(model.model, ("*",))}
    assert kinds == {
        "stem": "conv2d",
        "codes": "embedding",
        "block.self_attn.out_proj": "linear",
        "block.linear1": "linear",
        "block.linear2": "linear",
    }
    assert isinstance(model.model.get_submodule("block.norm1"), nn.LayerNorm)
    assert {t.name for t in find_targets(model.model, ("auto",))} == {
        "block.linear1",
        "block.linear2",
    }


def test_tied_weights_and_shared_layers(rows, tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice = nn.Linear(16, 16)
            self.one, self.two = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(self.twice(self.twice(x.flatten(1)))))

    path = save(tmp_path, Tied().eval(), torch.randn(2, 1, 4, 4))
    model = load(path, rows, tmp_path / "base").backbone.model
    assert [t.name for t in find_targets(model, ("auto",))] == ["twice"]
    with pytest.raises(ModelError, match=r"one is a Module"):
        find_targets(model, ("one",))


def test_what_has_to_be_exported_otherwise(net, rows, tmp_path):
    one = torch.randn(2, 1, 4, 4)

    def refused(message: str, model: nn.Module, *inputs: torch.Tensor, shapes: Any = BATCH) -> None:
        base = tmp_path / message.replace(" ", "")[:9]
        with pytest.raises(ModelError, match=message):
            load(save(tmp_path, model, *inputs, shapes=shapes), rows, base)

    class Still(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                x = x.flatten(1) * 2
            return self.net(x)

    class Two(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (a + b).flatten(1)

    class Pair(nn.Module):
        def forward(self, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return a.flatten(1), a.flatten(1)

    refused("a fixed batch of 2", net, one, shapes=None)
    refused("at most 16", net, one, shapes=({0: torch.export.Dim("batch", max=16)},))
    refused("2: a, b", Two(), one, one, shapes=(*BATCH, *BATCH))
    refused("2 outputs", Pair(), one)
    refused(r"has no torch\.no_grad", Still().eval(), one)
    refused("float32 input; found float64", net.double(), one.double())
    net.float()
    wide = nn.Flatten(), torch.randn(2, 1, 4, 4)
    refused("none among 1 operators; export it with torch.export.export alone", *wide)
    refused(r"samples of shape \[1, 9, 9\]", nn.Flatten(), torch.randn(2, 1, 9, 9))
    refused("training mode|buffer mutation|as they are", net.train(), one)


def test_text_is_refused(net, texts, tmp_path):
    with pytest.raises(ModelError, match="no tokenizer"):
        load(save(tmp_path, net, torch.randn(2, 1, 4, 4)), texts, tmp_path / "base")


def test_pictures_take_the_side_that_was_exported(images, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 100, 5))
    path = save(tmp_path, model.eval(), torch.randn(2, 3, 12, 12))
    loaded = load(path, images, tmp_path / "base")
    assert loaded.source.options["image"]["size"] == 12
    assert loaded.encoder.encode(images).batch(np.arange(2))["pixel_values"].shape[2:] == (12, 12)
    with pytest.raises(ModelError, match=r"shape \[3, 12, 12\]"):
        load(path, images, tmp_path / "other", image_size=16)
