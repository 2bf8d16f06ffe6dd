"""Normalisation layers of every family are found, whatever they derive from, and nothing else is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ArrayInputs
from torch import nn

from edge_pslora.config import StabilityConfig, TrainConfig
from edge_pslora.core.stability import StabilityTarget
from edge_pslora.training.inject import injected, new_adapters
from edge_pslora.training.loop import LoopHooks, train
from edge_pslora.training.norms import is_norm, norm_parameters
from edge_pslora.training.targets import find_targets
from tests.families import family_kit

transformers = pytest.importorskip("transformers")

TWO = {"num_hidden_layers": 2}
DECODER = {**family_kit.SIZES, **TWO, "vocab_size": 8, "num_key_value_heads": 1}
FAMILIES = {
    "Llama": ("LlamaRMSNorm", DECODER, 2 * 2 + 1),
    # query and key are normalised as well
    "Qwen3": ("Qwen3RMSNorm", {**DECODER, "head_dim": 8}, 2 * 4 + 1),
    "Qwen2": ("Qwen2RMSNorm", DECODER, 2 * 2 + 1),
    "GPT2": ("LayerNorm", {"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 8}, 2 * 2 + 1),
    "Deberta": ("DebertaLayerNorm", {**family_kit.TEXT, **TWO}, 2 * 2 + 1),
    "Bert": ("LayerNorm", {**family_kit.TEXT, **TWO}, 2 * 2 + 1),
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


class Store:
    """A loop's state in memory."""

    def __init__(self) -> None:
        self.saved: tuple[dict[str, Any], dict[str, Any]] | None = None

    def load(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        return self.saved

    def save(self, arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        self.saved = ({name: a.copy() for name, a in arrays.items()}, dict(meta))


class NormBeside(nn.Sequential):
    """A network with a norm that its features do not pass, as the final one of a cut-off head."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8), nn.LayerNorm(8))
        self.beside = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self[1](self[0](x))
        return out


def test_a_norm_beside_the_features_does_not_stop_a_resumed_run() -> None:
    def run(store: Store, stop_at: int) -> tuple[int, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        model = NormBeside().requires_grad_(False)
        adapters = new_adapters(find_targets(model, ["0"]), 2, 1.0, torch.Generator())
        norms = norm_parameters(model)
        for parameter in norms.values():
            parameter.requires_grad_(True)
        calls = iter(range(100))
        hooks = LoopHooks(stop=lambda: "killed" if next(calls) >= stop_at else "", store=store)
        config = TrainConfig(epochs=3, batch_size=4, checkpoint_every=1)
        rows = ArrayInputs(np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32))
        past: dict[str, StabilityTarget] = {}
        with injected(model, adapters):
            log = train(
                lambda inputs, _: (model(inputs["x"]) - 1).pow(2).mean(),
                rows,
                adapters,
                norms,
                past,
                StabilityConfig(weight=0.0),
                config,
                1,
                hooks,
            )
        return log.resumed_at, {name: p.detach().clone() for name, p in norms.items()}

    with torch.random.fork_rng(devices=[]):
        store = Store()
        _, whole = run(Store(), 100)
        run(store, 2)
        resumed_at, found = run(store, 100)
    assert resumed_at == 2
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert not torch.equal(whole["1.weight"], torch.ones(8))
    assert torch.equal(whole["beside.weight"], torch.ones(8))
