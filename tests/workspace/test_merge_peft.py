"""The torch-free merge against PEFT's merge_and_unload, on a tiny model with every layer kind."""

from __future__ import annotations

import numpy as np
import pytest

from edge_pslora.errors import AdapterError
from edge_pslora.merge_files import merge
from edge_pslora.workspace.tensors import read_tensors, write_tensors


@pytest.mark.filterwarnings("ignore")  # PEFT's own warnings are not ours to fail on
@pytest.mark.parametrize("use_rslora", [False, True])
def test_equals_merge_and_unload(tmp_path, use_rslora):
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")

    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = torch.nn.Embedding(11, 6)
            self.conv = torch.nn.Conv2d(1, 4, 3)
            self.hidden = torch.nn.Linear(6, 8)
            self.head = torch.nn.Linear(8, 3)

        def forward(self, ids):
            return self.head(self.hidden(self.emb(ids)))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tiny()
        state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
        config = peft.LoraConfig(
            r=2,
            lora_alpha=5,
            use_rslora=use_rslora,
            target_modules=["emb", "conv", "hidden"],
            modules_to_save=["head"],
            rank_pattern={"conv": 3},
            alpha_pattern={"hidden": 7},
            init_lora_weights=False,
        )
        adapted = peft.get_peft_model(model, config)
        with torch.no_grad():
            adapted.base_model.model.head.modules_to_save["default"].weight.add_(1.0)
    write_tensors(tmp_path / "base.safetensors", state)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    report = merge(
        [tmp_path / "adapter"],
        tmp_path / "base.safetensors",
        tmp_path / "out.safetensors",
        "none",
        max_update=np.inf,
    )
    merged = adapted.merge_and_unload().state_dict()
    result = read_tensors(tmp_path / "out.safetensors")
    assert result.keys() == merged.keys()
    assert set(report.merged) == {"emb.weight", "conv.weight", "hidden.weight"}
    assert set(report.replaced) == {"head.weight", "head.bias"}
    for name, value in merged.items():
        np.testing.assert_allclose(result[name], value.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
        assert (name in report.merged) == (not np.array_equal(state[name], result[name])) or (
            name in report.replaced
        )


def saved(tmp_path, build, targets, **config):
    """(base tensors, PEFT's model) of an adapter on the network that `build` makes, both saved."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(torch)
        state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
        settings = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, **config}
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, **settings))
    write_tensors(tmp_path / "base.safetensors", state)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    return state, adapted


def merged_by_us(tmp_path):
    out = tmp_path / "out.safetensors"
    report = merge([tmp_path / "adapter"], tmp_path / "base.safetensors", out, max_update=np.inf)
    return report, read_tensors(out)


@pytest.mark.filterwarnings("ignore")
def test_convolutions_of_one_and_three_dimensions(tmp_path):
    def build(torch):
        names = {"one": torch.nn.Conv1d(3, 5, 4), "two": torch.nn.Conv2d(2, 4, 1)}
        return torch.nn.ModuleDict(names | {"three": torch.nn.Conv3d(2, 3, 2)})

    _, adapted = saved(tmp_path, build, ["one", "two", "three"], rank_pattern={"three": 2})
    report, result = merged_by_us(tmp_path)
    assert len(report.merged) == 3
    for name, value in adapted.merge_and_unload().state_dict().items():
        np.testing.assert_allclose(result[name], value.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.filterwarnings("ignore")
def test_fan_in_fan_out_layers_of_transformers(tmp_path):
    layers = pytest.importorskip("transformers.pytorch_utils")

    def build(torch):
        return torch.nn.ModuleDict({"wide": layers.Conv1D(9, 4), "square": layers.Conv1D(6, 6)})

    _, adapted = saved(tmp_path, build, ["wide", "square"], fan_in_fan_out=True)
    report, result = merged_by_us(tmp_path)
    assert len(report.merged) == 2
    for name, value in adapted.merge_and_unload().state_dict().items():
        np.testing.assert_allclose(result[name], value.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", [("wide", "linear"), ("linear", "wide")])
def test_one_flag_for_layers_of_both_kinds(tmp_path, order):
    """PEFT corrects the flag layer by layer and saves the last: the shapes say what is right."""
    layers = pytest.importorskip("transformers.pytorch_utils")

    def build(torch):
        known = {"wide": layers.Conv1D(9, 4), "linear": torch.nn.Linear(3, 5)}
        return torch.nn.ModuleDict({name: known[name] for name in order})

    _, adapted = saved(tmp_path, build, list(order))
    _, result = merged_by_us(tmp_path)
    for name, value in adapted.merge_and_unload().state_dict().items():
        np.testing.assert_allclose(result[name], value.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.filterwarnings("ignore")
def test_a_square_weight_beside_both_kinds_is_refused(tmp_path):
    layers = pytest.importorskip("transformers.pytorch_utils")

    def build(torch):
        parts = {"square": layers.Conv1D(4, 4), "wide": layers.Conv1D(9, 4)}
        return torch.nn.ModuleDict({**parts, "linear": torch.nn.Linear(3, 5)})

    saved(tmp_path, build, ["square", "wide", "linear"])
    with pytest.raises(AdapterError, match=r"square: .*fan_in_fan_out"):
        merged_by_us(tmp_path)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bias", ["none", "all"])
def test_packed_attention(tmp_path, bias):
    """Against s B A, not against PEFT's forward, which applies out_proj's update twice (0.21)."""

    def build(torch):
        return torch.nn.ModuleDict({"block": torch.nn.MultiheadAttention(8, 2)})

    state, adapted = saved(
        tmp_path, build, ["block"], bias=bias, rank_pattern={"block": 2}, alpha_pattern={"block": 3}
    )
    stored = read_tensors(tmp_path / "adapter" / "adapter_model.safetensors")
    report, result = merged_by_us(tmp_path)
    pairs = {
        "block.in_proj_weight": "base_model.model.block",
        "block.out_proj.weight": "base_model.model.block.base_layer.out_proj",
    }
    assert set(report.merged) == set(pairs)
    for name, key in pairs.items():
        A, B = (stored[f"{key}.lora_{part}.weight"] for part in "AB")
        assert A.shape == (2, 8)
        expected = state[name] + 3 / 2 * (B @ A)
        np.testing.assert_allclose(result[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)
    assert result.keys() == state.keys()
    layer = adapted.base_model.model["block"]
    in_proj = state["block.in_proj_weight"] + layer.get_delta_weight("default").detach().numpy()
    np.testing.assert_allclose(result["block.in_proj_weight"], in_proj, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["Conv1d", "Conv2d"])
@pytest.mark.parametrize("groups", [2, 4])
def test_grouped_convolutions_are_refused_as_peft_does(tmp_path, kind, groups):
    def build(torch):
        return torch.nn.ModuleDict({"conv": getattr(torch.nn, kind)(4, 8, 3, groups=groups)})

    _, adapted = saved(tmp_path, build, ["conv"])
    with pytest.raises(NotImplementedError):
        adapted.merge_and_unload()
    with pytest.raises(AdapterError, match=f"without groups; found one with {groups}"):
        merged_by_us(tmp_path)
    assert not (tmp_path / "out.safetensors").exists()


def test_grouped_convolutions_with_a_dense_factor_are_refused_too(tmp_path):
    base = {"conv.weight": np.ones((8, 2, 3, 3), np.float32)}
    write_tensors(tmp_path / "base.safetensors", base)
    (tmp_path / "adapter").mkdir()
    factors = {
        "base_model.model.conv.lora_A.weight": np.ones((4, 4, 3, 3), np.float32),
        "base_model.model.conv.lora_B.weight": np.ones((8, 4, 1, 1), np.float32),
    }
    write_tensors(tmp_path / "adapter" / "adapter_model.safetensors", factors)
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 4, "lora_alpha": 4}'
    )
    with pytest.raises(AdapterError, match="without groups; found one with 2"):
        merged_by_us(tmp_path)
