"""Target selection: names, globs, auto; what cannot take an adapter is named, never silently skipped."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from transformers.pytorch_utils import Conv1D

from edge_pslora.errors import ModelError
from edge_pslora.training.targets import as_matrix, as_weight, find_targets


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(4, 8)})


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(9, 4)
        self.layers = nn.ModuleList([Block(), Block()])


def test_auto_takes_query_value_and_feed_forward_of_a_transformer():
    names = [t.name for t in find_targets(Transformer(), ["auto"])]
    assert names == [
        f"layers.{i}.{part}" for i in range(2) for part in ("query", "value", "intermediate.dense")
    ]


def test_auto_tells_bert_s_two_output_layers_apart():
    layer = nn.ModuleDict(
        {
            "attention": nn.ModuleDict({"output": nn.ModuleDict({"dense": nn.Linear(4, 4)})}),
            "output": nn.ModuleDict({"dense": nn.Linear(4, 4)}),
        }
    )
    assert [t.name for t in find_targets(layer, ["auto"])] == ["output.dense"]


def test_auto_takes_the_upper_two_thirds_of_any_other_network():
    convs = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(13)])
    assert [t.name for t in find_targets(convs, ["auto"])] == [str(i) for i in range(5, 13)]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("layers.0.query", ["layers.0.query"]),
        ("key", ["layers.0.key", "layers.1.key"]),
        (
            "layers.1.*",
            ["layers.1.query", "layers.1.key", "layers.1.value", "layers.1.intermediate.dense"],
        ),
        ("embeddings", ["embeddings"]),
    ],
)
def test_patterns(pattern, found):
    assert [t.name for t in find_targets(Transformer(), [pattern])] == found


def test_a_pattern_that_matches_nothing_names_what_there_is():
    with pytest.raises(
        ModelError, match=r"--target nope: .*no such layer; the model has embeddings"
    ):
        find_targets(Transformer(), ["nope"])


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        (nn.Conv2d(4, 4, 3, groups=4), "0 is a Conv2d with 4 groups"),
        (nn.Conv1d(4, 4, 3, groups=2), "0 is a Conv1d with 2 groups"),
        (nn.Conv1d(4, 4, 3, groups=4), "0 is a Conv1d with 4 groups"),
        (nn.ConvTranspose1d(4, 4, 3), "0 is a ConvTranspose1d"),
        (nn.ConvTranspose2d(4, 4, 3), "0 is a ConvTranspose2d"),
        (nn.Conv3d(4, 4, 3), "0 is a Conv3d"),
        (weight_norm(nn.Conv1d(4, 4, 3)), "0 is a ParametrizedConv1d whose weight is computed"),
        (weight_norm(nn.Linear(4, 4)), "0 is a ParametrizedLinear whose weight is computed"),
        (nn.LayerNorm(4), "0 is a LayerNorm"),
        (nn.Embedding(4, 4, max_norm=1.0), "0 is a Embedding"),
    ],
)
def test_a_layer_that_cannot_take_an_adapter_is_refused(layer, found):
    with pytest.raises(ModelError, match=found):
        find_targets(nn.Sequential(layer), ["0"])


def test_tied_weights_are_found_by_storage():
    model = Transformer()
    model.head = nn.Linear(4, 9, bias=False)
    model.head.weight = model.embeddings.weight
    with pytest.raises(ModelError, match=r"embeddings.weight is tied to head.weight"):
        find_targets(model, ["embeddings"])
    assert "head" not in [t.name for t in find_targets(model, ["auto"])]


def test_auto_leaves_out_what_cannot_take_an_adapter():
    layers = [nn.Conv1d(4, 4, 3), nn.Conv1d(4, 4, 3, groups=4), nn.ConvTranspose1d(4, 4, 3)]
    model = nn.Sequential(*layers, weight_norm(nn.Conv1d(4, 4, 3)), nn.Conv1d(4, 4, 1))
    assert [t.name for t in find_targets(model, ["auto"])] == ["4"]


def test_conv1d_of_gpt_2_is_known_by_its_module_and_shape():
    (target,) = find_targets(nn.Sequential(Conv1D(5, 3)), ["0"])
    assert (target.kind, target.shape) == ("transposed_linear", (5, 3))

    class Other(Conv1D):
        pass  # of this module: it may compute anything

    with pytest.raises(ModelError, match="0 is a Other"):
        find_targets(nn.Sequential(Other(5, 3)), ["0"])


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(5, 3), nn.Conv2d(2, 3, 3), nn.Conv1d(2, 3, 3), nn.Embedding(7, 3), Conv1D(5, 3)],
)
def test_matrix_and_weight_are_inverses(layer):
    (target,) = find_targets(nn.Sequential(layer), ["0"])
    matrix = as_matrix(layer.weight.detach(), target)
    assert tuple(matrix.shape) == target.shape
    assert torch.equal(as_weight(matrix, target, layer.weight.shape), layer.weight)
