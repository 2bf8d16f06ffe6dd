"""`--target auto` in every family: query, value and both feed-forward products; grouped layers never."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edge_pslora.errors import ModelError
from edge_pslora.exporters.lora_factors import factors_from_matrices
from edge_pslora.exporters.peft_adapter import write_peft_adapter
from edge_pslora.exporters.peft_format import AdapterConfig
from edge_pslora.merge_files import merge
from edge_pslora.training.inject import injected, new_adapters
from edge_pslora.training.targets import find_targets
from edge_pslora.workspace.tensors import read_tensors, write_tensors
from tests.families import family_kit
from tests.families.family_checks import ends

transformers = pytest.importorskip("transformers")

TWO = {"num_hidden_layers": 2}
SIZES = {**family_kit.SIZES, **TWO}
WORDS = {"vocab_size": 11}
DECODER = {**SIZES, **WORDS, "num_key_value_heads": 1}
GATED = ("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj")
SPEECH = {"conv_dim": [8, 8], "conv_kernel": [4, 4], "conv_stride": [2, 2]} | {
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 2,
}
VIT = ("q_proj", "v_proj", "fc1", "fc2")
# class, configuration, ends of the names of what `auto` takes in each of the two layers
FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "GPT2": (
        "LMHeadModel",
        {**WORDS, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16},
        ("c_attn", "c_fc", "mlp.c_proj"),
    ),
    "Llama": ("ForCausalLM", {**DECODER, "tie_word_embeddings": True}, GATED),
    "Qwen2": ("ForCausalLM", {**DECODER, "tie_word_embeddings": True}, GATED),
    "Qwen3": ("ForCausalLM", {**DECODER, "head_dim": 8}, GATED),
    "Wav2Vec2": (
        "Model",
        {**SIZES, **SPEECH},
        ("q_proj", "v_proj", "intermediate_dense", "output_dense"),
    ),
    "AST": (
        "Model",
        {**SIZES, "num_mel_bins": 16, "max_length": 32, "patch_size": 8}
        | {"frequency_stride": 8, "time_stride": 8},
        VIT,
    ),
    "MiniLM": (
        "Model",
        {**family_kit.TEXT, **TWO},
        ("self.query", "self.value", "intermediate.dense", "output.dense"),
    ),
}


def build(name: str) -> nn.Module:
    suffix, settings, _ = FAMILIES[name]
    prefix = "Bert" if name == "MiniLM" else name
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        config = getattr(transformers, f"{prefix}Config")(**settings)
        model: nn.Module = getattr(transformers, prefix + suffix)(config)
        return model.eval().requires_grad_(False)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family(name: str) -> None:
    expected = FAMILIES[name][2]
    names = [target.name for target in find_targets(build(name), ["auto"])]
    assert ends(names, expected) == set(expected)
    assert len(names) == 2 * len(expected)
    assert not any("attention.output" in target for target in names)


@pytest.mark.parametrize(
    ("name", "embedding", "head"),
    [
        ("GPT2", "transformer.wte", "lm_head"),
        ("Llama", "model.embed_tokens", "lm_head"),
        ("Qwen2", "model.embed_tokens", "lm_head"),
    ],
)
@pytest.mark.parametrize("end", ["embedding", "head"])
def test_tied_embeddings_are_refused_by_name(
    name: str, embedding: str, head: str, end: str
) -> None:
    with pytest.raises(ModelError, match="is tied to"):
        find_targets(build(name), [embedding if end == "embedding" else head])


def test_the_grouped_convolution_of_wav2vec2_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"pos_conv_embed\.conv is a .*Conv1d with 2 groups"):
        find_targets(build("Wav2Vec2"), ["pos_conv_embed.conv"])


# PEFT asks transformers under an old name; a warning about fan_in_fan_out would still fail the test
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("targets", [("auto",), ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj")])
@torch.no_grad()
def test_gpt_2_four_ways(tmp_path: Path, targets: tuple[str, ...]) -> None:
    """Our adapter, PEFT with our folder (without a warning), our merge of files: the same logits."""
    peft = pytest.importorskip("peft")
    model = build("GPT2")
    generator = torch.Generator().manual_seed(1)
    adapters = new_adapters(find_targets(model, targets), 2, 2.0, generator)
    weights = dict(model.named_parameters())
    layers = {}
    for name, adapter in adapters.items():
        adapter.B.normal_(generator=generator)
        kind, shape = adapter.target.kind, tuple(weights[adapter.target.weight_name].shape)
        assert kind == "transposed_linear"
        layers[name] = factors_from_matrices(
            kind, adapter.A.numpy(), adapter.B.numpy(), adapter.scaling, shape
        )
    ids = torch.arange(10).reshape(2, 5)
    with injected(model, adapters):
        expected = model(input_ids=ids).logits
    assert not torch.allclose(model(input_ids=ids).logits, expected, atol=1e-3)
    (tmp_path / "adapter").mkdir()
    write_peft_adapter(tmp_path / "adapter", layers, AdapterConfig(2, 4.0))
    loaded = peft.PeftModel.from_pretrained(build("GPT2"), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
    state = {n: v.numpy() for n, v in model.state_dict().items() if n != "lm_head.weight"}
    write_tensors(tmp_path / "model.safetensors", state)
    merge(
        [tmp_path / "adapter"],
        tmp_path / "model.safetensors",
        tmp_path / "out.safetensors",
        max_update=math.inf,
    )
    merged = read_tensors(tmp_path / "out.safetensors")
    other = build("GPT2")
    problems = other.load_state_dict(
        {n: torch.from_numpy(v) for n, v in merged.items()}, strict=False
    )
    assert problems.missing_keys == ["lm_head.weight"]
    torch.testing.assert_close(other(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
    changed = {name for name in merged if not np.array_equal(merged[name], state[name])}
    assert changed == {adapter.target.weight_name for adapter in adapters.values()}
