"""Tied embeddings: refused where the head shares the tensor, merged where it has its own."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from edge_pslora.errors import AdapterError, ModelError
from edge_pslora.merge_files import merge
from edge_pslora.workspace.tensors import read_tensors, write_tensors

VOCABULARY, SIZE = 9, 4
EMBEDDING, HEAD, POSITIONS = "model.embed_tokens", "lm_head", "model.positions"


def make(folder, config, *, adapted=EMBEDDING, stored=(EMBEDDING,), saved=None):
    """A base with these embeddings and an adapter on one of them (or that one saved whole)."""
    rng = np.random.default_rng(0)
    shapes = {f"{name}.weight": (VOCABULARY, SIZE) for name in stored}
    shapes |= {f"{POSITIONS}.weight": (6, SIZE), "model.q.weight": (SIZE, SIZE)}
    base = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    write_tensors(folder / "model.safetensors", base)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    ones = np.ones((2, SIZE), np.float32)
    tensors = {"model.q.lora_A.weight": ones, "model.q.lora_B.weight": ones.T.copy()}
    if saved:
        tensors[f"{saved}.weight"] = rng.normal(size=(VOCABULARY, SIZE)).astype(np.float32)
    elif adapted == HEAD:
        tensors[f"{HEAD}.lora_A.weight"] = ones
        tensors[f"{HEAD}.lora_B.weight"] = np.ones((VOCABULARY, 2), np.float32)
    else:
        rows = len(base[f"{adapted}.weight"])
        tensors[f"{adapted}.lora_embedding_A"] = np.ones((2, rows), np.float32)
        tensors[f"{adapted}.lora_embedding_B"] = np.ones((SIZE, 2), np.float32)
    (folder / "a").mkdir()
    named = {f"base_model.model.{name}": value for name, value in tensors.items()}
    write_tensors(folder / "a" / "adapter_model.safetensors", named)
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "modules_to_save": [saved or "x"]}
    (folder / "a" / "adapter_config.json").write_text(json.dumps(content))
    return folder / "a"


LLAMA = {"architectures": ["LlamaForCausalLM"], "vocab_size": VOCABULARY}
TIED = {
    "flag": {**LLAMA, "tie_word_embeddings": True},
    "flag without architecture": {"tie_word_embeddings": True, "vocab_size": VOCABULARY},
    "flag without size": {"tie_word_embeddings": True},
    "of the text part": {
        "architectures": ["GemmaForConditionalGeneration"],
        "text_config": {"tie_word_embeddings": True, "vocab_size": VOCABULARY},
    },
    "default of a head": {"architectures": ["GPT2LMHeadModel"], "vocab_size": VOCABULARY},
    "default of a masked head": {"architectures": ["BertForMaskedLM"], "vocab_size": VOCABULARY},
}
OWN = {
    "flag off": {**LLAMA, "tie_word_embeddings": False},
    "no head": {"architectures": ["BertModel"], "tie_word_embeddings": True, "vocab_size": 9},
    "classifier": {"architectures": ["LlamaForSequenceClassification"], "vocab_size": VOCABULARY},
    "no config": None,
    "a config that says nothing": {"hidden_size": SIZE},
    "odd values": {"architectures": 3, "vocab_size": [9], "text_config": "none"},
}


@pytest.mark.parametrize("case", TIED)
@pytest.mark.parametrize("how", ["adapted", "head adapted", "saved", "head saved"])
def test_a_tensor_that_the_head_shares_is_refused(tmp_path, case, how):
    more = {
        "adapted": {},
        "head adapted": {"adapted": HEAD, "stored": (HEAD,)},
        "saved": {"saved": EMBEDDING},
        "head saved": {"saved": HEAD},
    }[how]
    adapter = make(tmp_path, TIED[case], **more)
    with pytest.raises(AdapterError, match=r"head share .*config\.json.*; adapt other") as caught:
        merge([adapter], tmp_path, tmp_path / "out.safetensors", max_update=math.inf)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("case", OWN)
def test_an_embedding_of_its_own_is_merged(tmp_path, case):
    adapter = make(tmp_path, OWN[case])
    report = merge([adapter], tmp_path, tmp_path / "out.safetensors", max_update=math.inf)
    assert f"{EMBEDDING}.weight" in report.merged


def test_two_tensors_in_the_file_are_not_one(tmp_path):
    adapter = make(tmp_path, TIED["flag"], stored=(EMBEDDING, HEAD))
    merge(
        [adapter], tmp_path / "model.safetensors", tmp_path / "out.safetensors", max_update=math.inf
    )
    base, out = (read_tensors(tmp_path / f"{n}.safetensors") for n in ("model", "out"))
    np.testing.assert_array_equal(base["lm_head.weight"], out["lm_head.weight"])
    assert not np.array_equal(base[f"{EMBEDDING}.weight"], out[f"{EMBEDDING}.weight"])


def test_other_embeddings_and_other_layers_are_merged(tmp_path):
    adapter = make(tmp_path, TIED["flag"], adapted=POSITIONS)
    report = merge([adapter], tmp_path, tmp_path / "out.safetensors", max_update=math.inf)
    assert set(report.merged) == {f"{POSITIONS}.weight", "model.q.weight"}


def test_a_damaged_config_is_named(tmp_path):
    adapter = make(tmp_path, {})
    (tmp_path / "config.json").write_text("{nonsense")
    with pytest.raises(ModelError, match=r"config\.json: expected strict JSON"):
        merge([adapter], tmp_path, tmp_path / "out.safetensors", max_update=math.inf)
