"""Adapter folders against the real PEFT, both ways."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from edge_pslora.errors import AdapterError, EdgePsloraError
from edge_pslora.exporters.lora_factors import LoraFactors, factors_from_matrices
from edge_pslora.exporters.model_card import ModelCard
from edge_pslora.exporters.peft_adapter import (
    read_peft_adapter,
    write_peft_adapter,
)
from edge_pslora.exporters.peft_format import AdapterConfig
from edge_pslora.workspace.tensors import read_tensors

OLD_KEYS = {
    *("peft_type", "task_type", "base_model_name_or_path", "inference_mode", "r", "lora_alpha"),
    *("lora_dropout", "bias", "fan_in_fan_out", "use_rslora", "target_modules", "rank_pattern"),
    "alpha_pattern",
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(x)
        return out


class Net(nn.Module):
    """Every kind of layer; `fc` is also the end of `block.fc`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.block = Block()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.series = nn.Conv1d(3, 8, 3, stride=2)
        self.fc = nn.Linear(8, 4)

    def forward(self, ids: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        x = self.attention(x, x, x, need_weights=False)[0]
        seen = self.conv(image).mean((2, 3)) + self.series(image.flatten(2)).mean(2)
        out: torch.Tensor = self.fc(self.block(x).mean(1) + seen)
        return out


WEIGHTS = {
    "embed": ("embedding", "embed.weight"),
    "attention": ("mha_in_proj", "attention.in_proj_weight"),
    "block.fc": ("linear", "block.fc.weight"),
    "conv": ("conv2d", "conv.weight"),
    "series": ("conv1d", "series.weight"),
    "fc": ("linear", "fc.weight"),
}


def new_net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 10, (3, 5), generator=generator)
    return ids, torch.randn(3, 3, 6, 6, generator=generator)


def random_layer(path: str, rank: int, scaling: float, seed: int = 0) -> LoraFactors:
    kind, weight_name = WEIGHTS[path]
    shape = tuple(new_net().state_dict()[weight_name].shape)
    out, size = (shape[1], shape[0]) if kind == "embedding" else (shape[0], int(np.prod(shape[1:])))
    rng = np.random.default_rng([seed, len(path)])
    A, B = rng.normal(size=(rank, size)), rng.normal(size=(out, rank))
    return factors_from_matrices(
        kind, (0.3 * A).astype(np.float32), (0.3 * B).astype(np.float32), scaling, shape
    )


def merged_outputs(layers: dict[str, LoraFactors]) -> torch.Tensor:
    net = new_net()
    state = net.state_dict()
    with torch.no_grad():
        for path, layer in layers.items():
            state[WEIGHTS[path][1]] += torch.from_numpy(layer.delta().copy())
        outputs: torch.Tensor = net(*inputs())
    return outputs


def peft_outputs(folder: Path) -> torch.Tensor:
    model = PeftModel.from_pretrained(new_net(), str(folder)).eval()
    with torch.no_grad():
        outputs: torch.Tensor = model(*inputs())
    return outputs


@pytest.mark.parametrize(
    "paths", [["embed"], ["attention"], ["conv"], ["series"], ["block.fc"], list(WEIGHTS)]
)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_peft_computes_with_base_plus_delta(
    tmp_path: Path, paths: list[str], use_rslora: bool
) -> None:
    rank, alpha = 2, 3.0
    scaling = alpha / (rank**0.5 if use_rslora else rank)
    layers = {path: random_layer(path, rank, scaling) for path in paths}
    write_peft_adapter(tmp_path, layers, AdapterConfig(rank, alpha, use_rslora))
    expected = merged_outputs(layers)
    assert not torch.allclose(expected, merged_outputs({}), atol=1e-3)
    assert torch.allclose(peft_outputs(tmp_path), expected, atol=1e-5)


def test_ranks_and_scalings_of_each_layer_survive(tmp_path: Path) -> None:
    layers = {
        path: random_layer(path, rank, 0.5 + 0.25 * rank)
        for rank, path in enumerate(WEIGHTS, start=1)
    }
    write_peft_adapter(tmp_path, layers, AdapterConfig(4, 8.0))
    assert torch.allclose(peft_outputs(tmp_path), merged_outputs(layers), atol=1e-5)
    back = read_peft_adapter(tmp_path).layers
    for path, layer in layers.items():
        assert back[path].rank == layer.rank or path == "attention"
        assert np.allclose(back[path].delta(), layer.delta(), atol=1e-5)


def test_a_target_that_ends_another_path_leaves_that_one_alone(tmp_path: Path) -> None:
    layers = {"fc": random_layer("fc", 2, 1.0)}
    write_peft_adapter(tmp_path, layers, AdapterConfig(2, 2.0))
    # PEFT gives block.fc an adapter too and leaves its update at zero
    with pytest.warns(UserWarning, match="missing adapter keys"):
        outputs = peft_outputs(tmp_path)
    assert torch.allclose(outputs, merged_outputs(layers), atol=1e-5)


def test_out_proj_is_stored_as_peft_documents_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    out_proj = LoraFactors("mha_out_proj", rng.normal(size=(3, 8)), rng.normal(size=(8, 3)), 2.0)
    layers = {
        "attention": random_layer("attention", 2, 0.5),
        "attention.out_proj": out_proj,
        "fc": random_layer("fc", 1, 1.0),
        "block.fc": random_layer("block.fc", 2, 1.0),
    }
    write_peft_adapter(tmp_path, layers, AdapterConfig(2, 1.0))
    model = PeftModel.from_pretrained(new_net(), str(tmp_path))
    attention = model.base_model.model.attention
    # the layer's own delta, not its forward: PEFT 0.21 adds it twice there (its PR 3774)
    loaded = attention.base_layer.out_proj.get_delta_weight("default").detach().numpy()
    assert np.allclose(loaded, out_proj.delta(), atol=1e-5)
    back = read_peft_adapter(tmp_path).layers
    assert {path: layer.kind for path, layer in back.items()} == {
        "attention": "mha_in_proj",
        "attention.out_proj": "mha_out_proj",
        "block.fc": "linear",
        "fc": "linear",
    }
    for path, layer in layers.items():
        assert np.allclose(back[path].delta(), layer.delta(), atol=1e-5)


def test_an_adapter_saved_by_peft_is_read(tmp_path: Path) -> None:
    config = LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=["embed", "attention", "block.fc", "conv"],
        rank_pattern={"conv": 3},
        alpha_pattern={"embed": 5},
    )
    model = get_peft_model(new_net(), config).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
                if "out_proj" in name:
                    parameter.zero_()
        expected = model(*inputs())
    model.save_pretrained(str(tmp_path))
    adapter = read_peft_adapter(tmp_path)
    assert set(adapter.layers) == {"embed", "attention", "block.fc", "conv"}
    assert adapter.config.rank == 2
    assert adapter.sidecar == {}
    assert torch.allclose(merged_outputs(dict(adapter.layers)), expected, rtol=1e-5, atol=1e-4)


def test_files_keys_and_sidecar(tmp_path: Path) -> None:
    layers = {path: random_layer(path, 2, 1.0) for path in WEIGHTS}
    card = ModelCard("An adapter", "peft", base_model="tiny", labels=("a", "b"))
    paths = write_peft_adapter(
        tmp_path,
        layers,
        AdapterConfig(2, 2.0, base_model="tiny"),
        sidecar={"session": 3},
        card=card,
    )
    assert sorted(paths) == sorted(tmp_path.iterdir())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config.keys() == OLD_KEYS
    assert config["target_modules"] == sorted(WEIGHTS)
    assert config["inference_mode"] is True
    assert config["base_model_name_or_path"] == "tiny"
    shapes = {
        name.removeprefix("base_model.model."): array.shape
        for name, array in read_tensors(tmp_path / "adapter_model.safetensors").items()
    }
    assert shapes == {
        "embed.lora_embedding_A": (2, 10),
        "embed.lora_embedding_B": (8, 2),
        "attention.lora_A.weight": (2, 8),
        "attention.lora_B.weight": (24, 2),
        "attention.base_layer.out_proj.lora_A.weight": (2, 8),
        "attention.base_layer.out_proj.lora_B.weight": (8, 2),
        "block.fc.lora_A.weight": (2, 8),
        "block.fc.lora_B.weight": (8, 2),
        "conv.lora_A.weight": (2, 3, 3, 3),
        "conv.lora_B.weight": (8, 2, 1, 1),
        "series.lora_A.weight": (2, 3, 3),
        "series.lora_B.weight": (8, 2, 1),
        "fc.lora_A.weight": (2, 8),
        "fc.lora_B.weight": (4, 2),
    }
    assert read_peft_adapter(tmp_path).sidecar == {"session": 3}
    text = (tmp_path / "README.md").read_text()
    assert text.startswith('---\nlibrary_name: peft\nbase_model: "tiny"\ntags:\n')


@settings(max_examples=25, deadline=None)
@given(
    paths=st.lists(st.sampled_from(list(WEIGHTS)), min_size=1, unique=True),
    rank=st.integers(1, 5),
    alpha=st.floats(0.25, 64.0),
    use_rslora=st.booleans(),
)
def test_round_trip_is_exact_and_order_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory,
    paths: list[str],
    rank: int,
    alpha: float,
    use_rslora: bool,
) -> None:
    scaling = alpha / (rank**0.5 if use_rslora else rank)
    layers = {path: random_layer(path, rank, scaling) for path in paths}
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    config = AdapterConfig(rank, alpha, use_rslora)
    write_peft_adapter(one, layers, config)
    write_peft_adapter(two, dict(reversed(layers.items())), config)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    back = read_peft_adapter(one)
    assert set(back.layers) == set(layers)
    for path, layer in layers.items():
        found = back.layers[path]
        assert found.kind == layer.kind
        assert np.array_equal(found.A, layer.A)
        assert np.array_equal(found.B, layer.B)
        assert found.scaling == pytest.approx(scaling)


def test_bad_layers_leave_nothing_behind(tmp_path: Path) -> None:
    good = random_layer("fc", 2, 1.0)
    nan = good.B.copy()
    nan[0, 0] = np.nan
    bad = [
        {},
        {"fc": LoraFactors("linear", good.A, good.B[:, :1], 1.0)},
        {"fc": LoraFactors("conv2d", good.A, good.B, 1.0)},
        {"fc": LoraFactors("conv1d", good.A, good.B, 1.0)},
        {"fc": LoraFactors("mha_in_proj", good.A, good.B, 1.0)},
        {"fc": LoraFactors("linear", good.A, good.B, 0.0)},
        {"fc": LoraFactors("linear", good.A, good.B, float("nan"))},
        {"fc": LoraFactors("linear", good.A, nan, 1.0)},
    ]
    for layers in bad:
        with pytest.raises(EdgePsloraError):
            write_peft_adapter(tmp_path, layers, AdapterConfig(2, 2.0))
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"use_dora": True}, "use_dora"),
        ({"r": 5}, "rank"),
    ],
)
def test_adapters_that_are_not_plain_lora_are_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    write_peft_adapter(tmp_path, {"fc": random_layer("fc", 2, 1.0)}, AdapterConfig(2, 2.0))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(AdapterError, match=message if message != "rank" else "A \\[5"):
        read_peft_adapter(tmp_path)
