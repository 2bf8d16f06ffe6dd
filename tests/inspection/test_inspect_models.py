"""What a file's names and shapes say about a model is what the loaded model says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from edge_pslora.config import LoraConfig
from edge_pslora.data.options import ReadOptions
from edge_pslora.errors import ModelError, UsageError
from edge_pslora.inspection.facts import ModelFacts
from edge_pslora.inspection.source import inspect_source
from edge_pslora.models.head_search import cut
from edge_pslora.models.hf_names import trace_names
from edge_pslora.models.hf_parts import drop_pooler, quiet
from edge_pslora.models.options import ModelOptions
from edge_pslora.models.weights import read_weights
from edge_pslora.training.targets import find_targets
from edge_pslora.workspace.tensors import write_tensors

LABELS = tuple(f"kind {i}" for i in range(7))
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
TEXT = {**SIZES, "vocab_size": 50, "max_position_embeddings": 24}
IMAGE = {**SIZES, "image_size": 16, "patch_size": 4}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "vocab_size": 50}
CONVNEXT = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "image_size": 32}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 2, 1]}
MOBILE = {"image_size": 32, "depth_multiplier": 0.25}
SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "image_size": 32, "window_size": 4}
WAVE = {
    **SIZES,
    "conv_dim": [8, 8],
    "conv_stride": [2, 2],
    "conv_kernel": [3, 3],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
# config class, sizes, class without a head, class with one
FAMILIES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "bert": ("BertConfig", TEXT, "BertModel", "BertForSequenceClassification"),
    "distilbert": (
        *("DistilBertConfig", DISTIL, "DistilBertModel"),
        "DistilBertForSequenceClassification",
    ),
    "roberta": ("RobertaConfig", TEXT, "RobertaModel", "RobertaForSequenceClassification"),
    "deberta-v2": ("DebertaV2Config", TEXT, "DebertaV2Model", "DebertaV2ForSequenceClassification"),
    "electra": ("ElectraConfig", TEXT, "ElectraModel", "ElectraForSequenceClassification"),
    "vit": ("ViTConfig", IMAGE, "ViTModel", "ViTForImageClassification"),
    "deit": ("DeiTConfig", IMAGE, "DeiTModel", "DeiTForImageClassification"),
    "swin": ("SwinConfig", SWIN, "SwinModel", "SwinForImageClassification"),
    "convnext": ("ConvNextConfig", CONVNEXT, "ConvNextModel", "ConvNextForImageClassification"),
    "resnet": ("ResNetConfig", RESNET, "ResNetModel", "ResNetForImageClassification"),
    "mobilenet_v1": (
        *("MobileNetV1Config", MOBILE, "MobileNetV1Model"),
        "MobileNetV1ForImageClassification",
    ),
    "mobilenet_v2": (
        *("MobileNetV2Config", MOBILE, "MobileNetV2Model"),
        "MobileNetV2ForImageClassification",
    ),
    "wav2vec2": ("Wav2Vec2Config", WAVE, "Wav2Vec2Model", "Wav2Vec2ForSequenceClassification"),
    "audio-spectrogram-transformer": (
        *("ASTConfig", {**SIZES, "num_mel_bins": 16, "max_length": 32}),
        *("ASTModel", "ASTForAudioClassification"),
    ),
    "albert": (
        "AlbertConfig",
        {**TEXT, "embedding_size": 16},
        "AlbertModel",
        "AlbertForSequenceClassification",
    ),
    "mpnet": ("MPNetConfig", TEXT, "MPNetModel", "MPNetForSequenceClassification"),
    "deberta": ("DebertaConfig", TEXT, "DebertaModel", "DebertaForSequenceClassification"),
    "dinov2": ("Dinov2Config", IMAGE, "Dinov2Model", "Dinov2ForImageClassification"),
    "convnextv2": (
        "ConvNextV2Config",
        CONVNEXT,
        "ConvNextV2Model",
        "ConvNextV2ForImageClassification",
    ),
    "llama": ("LlamaConfig", TEXT, "LlamaModel", "LlamaForCausalLM"),
    "qwen2": (
        *("Qwen2Config", {**TEXT, "tie_word_embeddings": True, "num_key_value_heads": 2}),
        *("Qwen2Model", "Qwen2ForCausalLM"),
    ),
}
CASES = [(family, headed) for family in FAMILIES for headed in (False, True)]
AUTO = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForImageClassification": "AutoModelForImageClassification",
    "ForAudioClassification": "AutoModelForAudioClassification",
    "ForCausalLM": "AutoModelForCausalLM",
}


def _inspect(folder: Path, *targets: str, rank: int = 8) -> ModelFacts:
    facts = inspect_source(
        str(folder),
        read=ReadOptions(),
        model_options=ModelOptions(),
        targets=targets or LoraConfig().target_modules,
        rank=rank,
    )
    assert isinstance(facts, ModelFacts)
    return facts


def _save(folder: Path, family: str, *, headed: bool, **more: Any) -> str:
    """Saves a tiny random model; returns the name of its class."""
    transformers = pytest.importorskip("transformers")
    kind, sizes, bare, full = FAMILIES[family]
    name = full if headed else bare
    names = {"id2label": dict(enumerate(LABELS))} if "Classification" in name else {}
    config = getattr(transformers, kind)(**sizes, **names, **more)
    with quiet(transformers):
        getattr(transformers, name)(config).save_pretrained(folder)
    return name


def _load(folder: Path, name: str) -> tuple[nn.Module, dict[str, str]]:
    """The model as import_folder leaves it, and state name -> name in the file."""
    import transformers

    if name.startswith("Wav2Vec2For"):
        name = "ForAudioClassification"
    auto = next((a for end, a in AUTO.items() if name.endswith(end)), "AutoModel")
    with quiet(transformers):
        model = getattr(transformers, auto).from_pretrained(folder, local_files_only=True)
    names = trace_names(model, read_weights(folder / "model.safetensors"), str(folder))
    if "Classification" in name:
        linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        cut(model, [n for n, m in linears.items() if m.out_features == len(LABELS)][-1])
    elif hasattr(model, "pooler") and model.main_input_name == "input_ids":
        drop_pooler(model)
    return model, names


@pytest.mark.parametrize(("family", "headed"), CASES)
def test_the_layers_of_auto_are_those_of_the_loaded_model(
    tmp_path: Path, family: str, headed: bool
) -> None:
    name = _save(tmp_path, family, headed=headed)
    facts = _inspect(tmp_path, rank=4)
    model, names = _load(tmp_path, name)
    expected = find_targets(model, ("auto",))
    assert {(t.weight_name, t.shape) for t in facts.targets} == {
        (names[t.weight_name], t.shape) for t in expected
    }
    assert facts.trained == sum(4 * (out + size) for out, size in (t.shape for t in expected))
    assert facts.targets_certain
    assert facts.family == family


def test_a_file_of_another_head_is_taken_for_its_encoder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    with quiet(transformers):
        transformers.BertForMaskedLM(transformers.BertConfig(**TEXT)).save_pretrained(tmp_path)
    facts = _inspect(tmp_path)
    model, names = _load(tmp_path, "BertForMaskedLM")
    expected = find_targets(model, ("auto",))
    assert [t.name for t in facts.targets] == [t.name for t in expected]
    assert [t.weight_name for t in facts.targets] == [names[t.weight_name] for t in expected]
    assert facts.task == "none of its own: an encoder"


def test_targets_by_name_end_and_glob(tmp_path: Path) -> None:
    name = _save(tmp_path, "bert", headed=False)
    patterns = ("key", "encoder.layer.1.*.query", "word_embeddings")
    model, _ = _load(tmp_path, name)
    expected = find_targets(model, patterns)
    facts = _inspect(tmp_path, *patterns)
    assert {(t.name, t.kind, t.shape) for t in facts.targets} == {
        (t.name, t.kind, t.shape) for t in expected
    }
    with pytest.raises(ModelError, match=r"--target nowhere: .*no such layer; the file has "):
        _inspect(tmp_path, "nowhere")


def test_labels_head_and_limits(tmp_path: Path) -> None:
    _save(tmp_path / "named", "roberta", headed=True, pad_token_id=1)
    facts = _inspect(tmp_path / "named")
    assert facts.labels == LABELS
    assert facts.head == "its own with 7 labels; new labels are added after them"
    assert facts.task == "classification: 7 labels"
    # RoBERTa counts positions from after its padding index
    assert (facts.modality, facts.input_limit) == ("text", 22)
    assert "No tokenizer" in facts.notes[0]
    assert (facts.dtype, facts.bytes) == (
        "F32",
        (tmp_path / "named" / "model.safetensors").stat().st_size,
    )
    tensors = read_weights(tmp_path / "named" / "model.safetensors")
    assert facts.parameters == sum(tensor.numel() for tensor in tensors.values())
    _save(tmp_path / "picture", "vit", headed=False)
    facts = _inspect(tmp_path / "picture")
    assert (facts.modality, facts.input_limit, facts.labels) == ("image", 16, ())
    _save(tmp_path / "language", "qwen2", headed=True)
    facts = _inspect(tmp_path / "language")
    assert facts.task == "language: the next token"
    assert any("one weight" in note for note in facts.notes)


def test_a_head_without_names_depends_on_the_data(tmp_path: Path) -> None:
    _save(tmp_path, "bert", headed=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {str(i): f"LABEL_{i}" for i in range(7)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert _inspect(tmp_path).head == "its own if the data's labels are 0 to 6, else a new one"


def test_damaged_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="the weights in one file"):
        _inspect(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"\x08\0\0\0\0\0\0\0{}      " + b"x")
    with pytest.raises(ModelError, match="damaged or hostile"):
        _inspect(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ModelError, match=r"config\.json"):
        _inspect(tmp_path)


def test_a_factory_is_built_and_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    image_size = 32\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.attention = nn.MultiheadAttention(8, 2)\n"
        "        self.after = nn.Linear(8, 4)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    facts = inspect_source(
        "own_net:Net", read=ReadOptions(), model_options=ModelOptions(), targets=("auto",), rank=2
    )
    assert isinstance(facts, ModelFacts)
    assert [(t.name, t.shape) for t in facts.targets] == [("attention", (24, 8))]
    assert (facts.family, facts.input_limit, facts.trained) == ("Net", 32, 2 * 32)
    with pytest.raises(ModelError, match="no_such_package"):
        inspect_source("no_such_package:net", read=ReadOptions(), model_options=ModelOptions())


def test_weights_alone_are_a_guess(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    arrays = {
        "attention.in_proj_weight": np.zeros((24, 8), np.float32),
        "attention.out_proj.weight": np.zeros((8, 8), np.float32),
        "norm.weight": np.zeros(8, np.float32),
        "count": np.zeros(1, np.int64),
    }
    write_tensors(path, arrays, {})
    facts = _inspect(path)
    assert [(t.name, t.kind) for t in facts.targets] == [("attention", "mha_in_proj")]
    assert not facts.targets_certain
    assert facts.parameters == 24 * 8 + 64 + 8
    assert [t.kind for t in _inspect(path, "out_proj").targets] == ["mha_out_proj"]
    with pytest.raises(UsageError, match="--weights"):
        inspect_source(str(path), read=ReadOptions(), model_options=ModelOptions(), weights=path)


def test_auto_says_what_it_stands_for() -> None:
    facts = inspect_source("auto", read=ReadOptions(), model_options=ModelOptions())
    assert isinstance(facts, ModelFacts)
    assert facts.kind == "auto"
    assert any("Tables" in note for note in facts.notes)


def test_the_first_layer_of_grey_pictures_is_no_grouped_convolution(tmp_path: Path) -> None:
    name = _save(tmp_path, "resnet", headed=False, num_channels=1)
    model, _ = _load(tmp_path, name)
    first = "embedder.embedder.convolution"
    assert [t.shape for t in find_targets(model, (first,))] == [(8, 49)]
    assert [t.shape for t in _inspect(tmp_path, first).targets] == [(8, 49)]
