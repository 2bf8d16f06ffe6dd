"""Normalisation layers of every family are found, whatever they derive from, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edge_pslora.training.norms import is_norm, norm_parameters
from tests.families import family_kit

transformers = pytest.importorskip("transformers")

DECODER = {**family_kit.SIZES, "vocab_size": 8, "num_key_value_heads": 1}
FAMILIES = {
    "Llama": ("LlamaRMSNorm", DECODER, 2 * 2 + 1),
    # query and key are normalised as well
    "Qwen3": ("Qwen3RMSNorm", {**DECODER, "head_dim": 8}, 2 * 4 + 1),
    "Qwen2": ("Qwen2RMSNorm", DECODER, 2 * 2 + 1),
    "GPT2": ("LayerNorm", {"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 8}, 2 * 2 + 1),
    "Deberta": ("DebertaLayerNorm", {**family_kit.TEXT}, 2 * 2 + 1),
    "Bert": ("LayerNorm", {**family_kit.TEXT}, 2 * 2 + 1),
    "ResNet": ("BatchNorm2d", family_kit.IMAGE_CLASSES["resnet"][1], None),
    "MobileNetV2": ("BatchNorm2d", family_kit.MOBILE, None),
    "T5Encoder": (
        "T5LayerNorm",
        {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 2, "num_heads": 2, "vocab_size": 8},
        2 * 2 + 1,
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_norms_of_a_family(name: str) -> None:
    kind, settings, count = FAMILIES[name]
    config = getattr(transformers, f"{name.removesuffix('Encoder')}Config")(**settings)
    model = getattr(transformers, f"{name}Model")(config)
    found = {n: m for n, m in model.named_modules() if is_norm(m)}
    kinds = {type(module).__name__ for module in found.values()}
    assert kind in kinds
    assert all("norm" in other.lower() for other in kinds)
    if count is None:
        count = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert len(found) == count
    parameters = norm_parameters(model)
    assert len(parameters) == sum(len(list(m.parameters())) for m in found.values())
    assert all(parameter is model.get_parameter(n) for n, parameter in parameters.items())


class Normaliser(nn.Module):
    """Called a norm, but it mixes features."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))


class NormBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.inner = nn.LayerNorm(3)


@pytest.mark.parametrize("module", [Normaliser(), NormBlock(), nn.Linear(3, 3), nn.Identity()])
def test_what_is_not_a_norm(module: nn.Module) -> None:
    assert not is_norm(module)


def test_every_class_of_torch() -> None:
    norms = [
        nn.LayerNorm(4),
        nn.RMSNorm(4),
        nn.GroupNorm(2, 4),
        nn.BatchNorm1d(4),
        nn.BatchNorm3d(4),
        nn.InstanceNorm2d(4, affine=True),
    ]
    model = nn.Sequential(*norms, nn.LayerNorm(4, elementwise_affine=False))
    assert all(is_norm(module) for module in model)
    assert {name.split(".")[0] for name in norm_parameters(model)} == set("012345")
    assert set(norm_parameters(nn.LayerNorm(4))) == {"weight", "bias"}
