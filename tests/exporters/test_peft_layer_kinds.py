"""Each kind of layer four ways: our adapter, our merged weight, PEFT with our folder, a merge of files."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from edge_pslora.errors import AdapterError
from edge_pslora.exporters.lora_factors import factors_from_matrices
from edge_pslora.exporters.peft_adapter import read_peft_adapter, write_peft_adapter
from edge_pslora.exporters.peft_format import AdapterConfig
from edge_pslora.merge_files import merge
from edge_pslora.training.inject import Adapter, injected, new_adapters
from edge_pslora.training.merging import target_weights
from edge_pslora.training.targets import find_targets
from edge_pslora.workspace.tensors import read_tensors, write_tensors

RANK, SCALING = 3, 2.0


class Gpt(nn.Module):
    """GPT-2's layers: all transposed, one of them square."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj, self.c_fc = Conv1D(15, 6), Conv1D(15, 15), Conv1D(4, 15)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.c_fc(self.c_proj(self.c_attn(x)))
        return out


class Mixed(nn.Module):
    """Both kinds, both square: only the model, or our sidecar, tells them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 6), Conv1D(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.third(self.second(self.first(x)))
        return out


def series(**settings: object) -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 6, 3, **settings), nn.ReLU(), nn.Conv1d(6, 4, 1))  # type: ignore[arg-type]


CASES = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4)), (5, 6)),
    "conv1d": (series, (2, 3, 11)),
    "conv1d, strided": (lambda: series(stride=2, padding=1), (2, 3, 11)),
    "conv1d, dilated": (lambda: series(dilation=3, padding="same"), (2, 3, 11)),
    "conv1d, circular": (lambda: series(padding=1, padding_mode="circular"), (2, 3, 11)),
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3, stride=2)), (2, 3, 9, 8)),
    "transposed": (Gpt, (2, 5, 6)),
    "mixed": (Mixed, (2, 5, 6)),
}
# PEFT 0.21 gives lora_A neither the dilation nor the padding mode of its layer; its merge is right
PEFT_FORGETS = ("conv1d, dilated", "conv1d, circular")
SILENT = [name for name in CASES if name != "mixed"]


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    make, shape = CASES[name]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = make().eval().requires_grad_(False)
        for parameter in model.parameters():  # Conv1D's own are as small as 0.02
            parameter.normal_(std=0.4)
        return model, torch.randn(shape)


def adapted(model: nn.Module) -> dict[str, Adapter]:
    """Adapters on every layer, B not zero."""
    generator = torch.Generator().manual_seed(1)
    adapters = new_adapters(find_targets(model, ["*"]), RANK, SCALING, generator)
    for adapter in adapters.values():
        with torch.no_grad():
            adapter.B.normal_(std=0.4, generator=generator)
    return adapters


def write(folder: Path, model: nn.Module, adapters: dict[str, Adapter]) -> Path:
    weights = dict(model.named_parameters())
    layers = {
        name: factors_from_matrices(
            a.target.kind,
            a.A.detach().numpy(),
            a.B.detach().numpy(),
            a.scaling,
            tuple(weights[a.target.weight_name].shape),
        )
        for name, a in adapters.items()
    }
    folder.mkdir()
    write_peft_adapter(folder, layers, AdapterConfig(RANK, RANK * SCALING))
    return folder


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_four_ways_give_one_result(tmp_path: Path, name: str) -> None:
    model, x = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    adapters = adapted(model)
    plain = model(x)
    with injected(model, adapters):
        expected = model(x)
    assert not torch.allclose(plain, expected, atol=1e-2), "the adapters had no effect at all"
    folder = write(tmp_path / "adapter", model, adapters)

    other, _ = build(name)
    with warnings.catch_warnings():
        if name not in SILENT:  # PEFT warns wherever the kind changes, whatever the flag says
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        peft = PeftModel.from_pretrained(other, str(folder)).eval()
    if name in PEFT_FORGETS:
        assert not torch.allclose(peft(x), expected, atol=1e-2), "PEFT is right now: drop this case"
        peft = peft.merge_and_unload()
    torch.testing.assert_close(peft(x), expected, rtol=1e-4, atol=1e-4)

    base = {key: value.numpy() for key, value in before.items()}
    write_tensors(tmp_path / "base.safetensors", base)
    merge(
        [folder], tmp_path / "base.safetensors", tmp_path / "out.safetensors", max_update=math.inf
    )
    out = read_tensors(tmp_path / "out.safetensors")
    third, _ = build(name)
    third.load_state_dict({key: torch.from_numpy(value) for key, value in out.items()})
    torch.testing.assert_close(third(x), expected, rtol=1e-4, atol=1e-4)

    targets = tuple(a.target for a in adapters.values())
    weights = target_weights(model, targets, before.__getitem__)
    weights.add({key: a.delta() for key, a in adapters.items()})
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    for target in targets:
        np.testing.assert_allclose(
            out[target.weight_name], model.state_dict()[target.weight_name], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", CASES)
def test_the_kinds_survive_the_folder(tmp_path: Path, name: str) -> None:
    model, _ = build(name)
    adapters = adapted(model)
    back = read_peft_adapter(write(tmp_path / "adapter", model, adapters)).layers
    assert {path: layer.kind for path, layer in back.items()} == {
        path: a.target.kind for path, a in adapters.items()
    }
    weights = dict(model.named_parameters())
    for path, layer in back.items():
        assert layer.delta().shape == tuple(weights[adapters[path].target.weight_name].shape)


def test_the_flag_is_false_beside_a_packed_attention(tmp_path: Path) -> None:
    """PEFT refuses a MultiheadAttention under a true flag, and corrects a false one at a Conv1D."""
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(6, 2), "wide": Conv1D(9, 6)})
    folder = write(tmp_path / "adapter", model, adapted(model.requires_grad_(False)))
    assert json.loads((folder / "adapter_config.json").read_text())["fan_in_fan_out"] is False
    with pytest.warns(UserWarning, match="Setting fan_in_fan_out to True"):
        peft = PeftModel.from_pretrained(model, str(folder))
    assert peft.base_model.model["wide"].fan_in_fan_out is True


@pytest.mark.parametrize("names", ["c_attn", [1], {"c_attn": True}])
def test_a_sidecar_that_is_not_ours_is_refused(tmp_path: Path, names: object) -> None:
    model, _ = build("transposed")
    folder = write(tmp_path / "adapter", model, adapted(model))
    (folder / "pslora_config.json").write_text(json.dumps({"transposed": names}))
    with pytest.raises(AdapterError, match="names in transposed"):
        read_peft_adapter(folder)


def test_a_sidecar_that_lies_is_found_by_the_shape(tmp_path: Path) -> None:
    model, _ = build("transposed")
    adapters = adapted(model)
    flipped = {
        name: replace(a, target=replace(a.target, kind="linear")) for name, a in adapters.items()
    }
    folder = write(tmp_path / "adapter", model, flipped)
    (folder / "pslora_config.json").write_text(json.dumps({"transposed": []}))
    base = {name: value.numpy() for name, value in model.state_dict().items()}
    write_tensors(tmp_path / "base.safetensors", base)
    with pytest.raises(AdapterError, match="an update of shape"):
        merge(
            [folder],
            tmp_path / "base.safetensors",
            tmp_path / "out.safetensors",
            max_update=math.inf,
        )
