"""Causal language models with a key-value cache: names, parity run by run, faults that are noticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edge_pslora.errors import DataError, ModelError, UsageError
from edge_pslora.exporters.cache_parity import check_cache
from edge_pslora.exporters.generate import CachedModel, generate, open_cached, padded
from edge_pslora.exporters.kv_cache import CACHE_KEY, KvCache, cache_of
from edge_pslora.exporters.onnx_cache import export_with_cache, find_cache
from edge_pslora.exporters.run import open_onnx
from edge_pslora.models.types import LoadedModel
from tests.families import speech_kit as kit
from tests.families.test_language_models import opened, texts

transformers = pytest.importorskip("transformers")

LAYERS = {"gpt2": 2, "qwen2": 1, "qwen3": 1}
HEADS = {"gpt2": 4, "qwen2": 2, "qwen3": 2}  # of keys and values; the models have 4 heads
CHECKS = {
    *("whole texts", "token by token", "piece by piece"),
    *("padded on the left", "padded on the right"),
}
PROMPTS = [[5, 9, 11, 30, 7], [8], [20, 21, 22]]


def loaded(family: str, tmp_path: Path, **more: object) -> LoadedModel:
    model = opened(kit.LANGUAGE[family](tmp_path / family, **more), tmp_path / "base")
    model.backbone.eval()
    return model


def batches(model: LoadedModel) -> list[dict[str, torch.Tensor]]:
    inputs = model.encoder.encode(texts())
    return [inputs.batch(np.array(rows)) for rows in ([4], [0, 1, 2, 3])]


def axes(value: onnx.ValueInfoProto) -> tuple[str | int, ...]:
    return tuple(size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim)


@pytest.mark.parametrize("family", sorted(LAYERS))
def test_a_cache_changes_nothing(family, tmp_path):
    more = {} if family == "gpt2" else {"num_hidden_layers": 1}
    model = loaded(family, tmp_path, **more)
    module = model.backbone.model
    cache = find_cache(module, batches(model)[1])
    assert cache == KvCache(LAYERS[family], HEADS[family], 8)
    path = tmp_path / "model.onnx"
    files = export_with_cache(model.backbone, "model", cache, path, metadata={"of": "a test"})
    _assert_as_optimum_writes_it(path, cache, model.feature_size)
    # the weights have the names of the state dict, of a tied pair one of the two
    missing = set(model.backbone.state_dict()) - set(files.layout)
    assert len(missing) == (family in kit.TIED)
    assert all(stored.source == name for name, stored in files.layout.items())
    # what is compared with has another kind of attention than what was traced
    assert module.config._attn_implementation == "sdpa"
    checks = check_cache(model.backbone, path, batches(model), threads=1)
    assert set(checks) == CHECKS
    for name, parity in checks.items():
        assert parity.max_abs_error < 1e-4, name
        assert parity.agreement == 1.0, name
    _assert_transformers_says_the_same(path, module)
    if family == "qwen3":
        _assert_faults_are_noticed(model, path)
        one = [{name: value[:, :1] for name, value in batch.items()} for batch in batches(model)]
        with pytest.raises(DataError, match="at least two tokens"):
            check_cache(model.backbone, path, one)


def _assert_as_optimum_writes_it(path: Path, cache: KvCache, tokens: int) -> None:
    graph = onnx.load(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    total = "past_sequence_length + sequence_length"
    kinds = [f"{layer}.{kind}" for layer in range(cache.layers) for kind in ("key", "value")]
    past = ("batch_size", cache.heads, "past_sequence_length", 8)
    assert {value.name: axes(value) for value in graph.input if value.name not in weights} == {
        "input_ids": ("batch_size", "sequence_length"),
        "attention_mask": ("batch_size", total),
        "position_ids": ("batch_size", "sequence_length"),
        **{f"past_key_values.{kind}": past for kind in kinds},
    }
    assert [(value.name, axes(value)) for value in graph.output] == [
        ("logits", ("batch_size", "sequence_length", tokens)),
        *((f"present.{kind}", ("batch_size", cache.heads, total, 8)) for kind in kinds),
    ]
    metadata = open_cached(path).runner.metadata
    assert metadata["of"] == "a test"
    shape = {"head_dim": 8, "heads": cache.heads, "layers": cache.layers}
    assert json.loads(metadata[CACHE_KEY]) == shape


def _assert_transformers_says_the_same(path: Path, module: torch.nn.Module) -> None:
    """Its own generation, of texts of unlike lengths side by side."""
    ids, mask = padded(PROMPTS, left=True)
    theirs = module.generate(  # type: ignore[operator]
        torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    found = generate(open_onnx(path, threads=1), PROMPTS, 12)
    assert found == theirs[:, ids.shape[1] :].tolist()
    assert len({tuple(tokens) for tokens in found}) == len(PROMPTS)
    end = found[0][4]
    until = generate(open_onnx(path, threads=1), PROMPTS, 12, end)
    assert until[0] == found[0][: found[0].index(end) + 1]
    assert [u == f[: len(u)] for u, f in zip(until, found, strict=True)] == [True] * len(PROMPTS)


def _assert_faults_are_noticed(model: LoadedModel, path: Path) -> None:
    def swap(graph: onnx.GraphProto) -> None:
        """Keys given back as values, and values as keys: the first run does not use them."""
        other = {"present.0.key": "present.0.value", "present.0.value": "present.0.key"}
        for node in graph.node:
            node.output[:] = [other.get(name, name) for name in node.output]
            node.input[:] = [other.get(name, name) for name in node.input]

    def ignore_padding(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.input[:] = ["ones" if n == "attention_mask" else n for n in node.input]
        shape = onnx.helper.make_node("Shape", ["attention_mask"], ["mask_shape"])
        one = onnx.helper.make_tensor("value", onnx.TensorProto.INT64, [1], [1])
        ones = onnx.helper.make_node("ConstantOfShape", ["mask_shape"], ["ones"], value=one)
        for node in (ones, shape):
            graph.node.insert(0, node)

    def count_from_zero(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.input[:] = ["zeros" if n == "position_ids" else n for n in node.input]
        zeros = onnx.helper.make_node("Sub", ["position_ids", "position_ids"], ["zeros"])
        graph.node.insert(0, zeros)

    whole = {"whole texts"}
    unpadded = {"whole texts", "token by token", "piece by piece", "padded on the right"}
    assert _passing(model, path, swap) == whole
    # behind a mask that ends in padding come tokens that would look back at it
    assert _passing(model, path, ignore_padding) == unpadded - {"padded on the right"}
    assert _passing(model, path, count_from_zero) == set()


def _passing(model: LoadedModel, path: Path, change: Callable[[onnx.GraphProto], None]) -> set[str]:
    proto = onnx.load(path)
    change(proto.graph)
    other = path.with_name(f"{change.__name__}.onnx")
    onnx.save(proto, other)
    checks = check_cache(model.backbone, other, batches(model), threads=1)
    return {name for name, parity in checks.items() if parity.max_abs_error < 1e-4}


@pytest.mark.parametrize(
    ("family", "settings", "found"),
    [
        (
            "Mistral",
            {"sliding_window": 4},
            "model type mistral: .* found DynamicCache of DynamicSlidingWindowLayer",
        ),
        (
            "Gemma3",
            {
                "head_dim": 8,
                "sliding_window": 4,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "gemma3_text: .* DynamicCache of DynamicLayer, DynamicSlidingWindowLayer",
        ),
        ("Mamba", {"state_size": 4}, "model type mamba: .* found no cache"),
    ],
)
def test_other_caches_are_refused(family, settings, found):
    names = kit.DECODER if family != "Mamba" else {"hidden_size": 16, "vocab_size": 47}
    kind = "Gemma3Text" if family == "Gemma3" else family
    config = getattr(transformers, f"{kind}Config")(**{**names, **settings})
    module = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    ids = torch.arange(12).reshape(2, 6)
    with pytest.raises(ModelError, match=found):
        find_cache(module, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def test_what_is_no_such_file_or_no_text(tmp_path):
    for metadata in ({}, {CACHE_KEY: "[]"}, {CACHE_KEY: '{"layers": 1}'}, {CACHE_KEY: "{"}):
        with pytest.raises(ModelError, match="--kv-cache"):
            cache_of(metadata, "model.onnx")
    assert cache_of({CACHE_KEY: KvCache(1, 2, 3).to_json()}, "") == KvCache(1, 2, 3)
    ids = onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["n", "t"])
    node = onnx.helper.make_node("Identity", ["input_ids"], ["logits"])
    out = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.INT64, ["n", "t"])
    graph = onnx.helper.make_graph([node], "g", [ids], [out])
    model = onnx.helper.make_model(
        graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 18)]
    )
    onnx.helper.set_model_props(model, {CACHE_KEY: KvCache(10**9, 2, 3).to_json()})
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="1000000000 layers as inputs"):
        open_cached(tmp_path / "model.onnx")
    runner = open_onnx(tmp_path / "model.onnx")
    cached = CachedModel(runner, KvCache(1, 2, 3))
    with pytest.raises(ModelError, match="check shapes"):
        cached.step(np.ones((1, 1), np.int64), np.ones((1, 1), np.int64), cached.empty(1))
    for prompts in ([], [[1], []]):
        with pytest.raises(UsageError, match="at least one token"):
            generate(runner, prompts, 1)
