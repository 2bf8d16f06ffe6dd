"""Causal language models: loading, logits, tied weights, ONNX. What training makes of them is elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from edge_pslora import AdaptConfig, TrainConfig, adapt
from edge_pslora.data.types import Samples
from edge_pslora.errors import ModelError
from edge_pslora.evaluation import evaluate
from edge_pslora.exporters.onnx_export import export_onnx
from edge_pslora.exporters.parity import check_parity
from edge_pslora.models.load import import_base, load_model
from edge_pslora.models.options import ModelOptions
from edge_pslora.models.types import LoadedModel
from edge_pslora.training.targets import find_targets
from edge_pslora.workspace.workspace import Workspace
from tests.families import speech_kit as kit
from tests.pipeline.pipeline_kit import write_jsonl
from tests.torch_free import assert_the_device_agrees

transformers = pytest.importorskip("transformers")

TEXTS = (
    "the ball goal match team player coach league",
    "bread soup",
    "the train and the hotel",
    "bank loan interest market share price tax budget credit fund the bank loan and the tax",
    "goal",
)
ENDS = 3


def texts(task_type: str = "language") -> Samples:
    labels = ["" if task_type == "language" else str(len(t) % 2) for t in TEXTS]
    return Samples("text", task_type, list(TEXTS), np.array(labels))  # type: ignore[arg-type]


def shallow(family: str, folder: Path, *suffix: str, **more: Any) -> Path:
    return kit.LANGUAGE[family](folder, *suffix, **{**kit.SHALLOW[family], **more})


def opened(
    folder: Path, base: Path, task_type: str = "language", options: ModelOptions | None = None
) -> LoadedModel:
    base.mkdir()
    source = import_base(str(folder), None, texts(task_type), options or ModelOptions(), base)
    return load_model(source, base)


@pytest.fixture(params=sorted(kit.LANGUAGE))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_logits_of_the_next_token(family, tmp_path):
    folder = kit.LANGUAGE[family](tmp_path / family)
    model = opened(folder, tmp_path / "base")
    module = model.backbone.model
    assert model.feature_size == module.config.vocab_size >= len(kit.VOCABULARY)
    assert model.base_head is None
    assert model.source.options["pooling"] == "language"
    assert model.encoder.input_names == ("input_ids", "attention_mask")
    assert model.dynamic_axes == dict.fromkeys(model.encoder.input_names, ("batch", "sequence"))
    inputs = model.encoder.encode(texts())
    batch = inputs.batch(np.arange(len(TEXTS)))
    with torch.no_grad():
        logits = model.backbone(**batch)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        for row, text in enumerate(TEXTS):
            ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
            assert batch["input_ids"][row, : len(ids)].tolist() == ids
            assert int(batch["attention_mask"][row].sum()) == len(ids)
            alone = theirs(torch.tensor([ids])).logits[0]
            torch.testing.assert_close(logits[row, : len(ids)], alone, rtol=1e-4, atol=1e-4)


def test_tied_weights_are_no_targets_and_stay_one_tensor(family, tmp_path):
    folder = kit.LANGUAGE[family](tmp_path / family)
    model = opened(folder, tmp_path / "base")
    module = model.backbone.model
    head, embedding = module.get_output_embeddings(), module.get_input_embeddings()
    shared = (
        head.weight.untyped_storage().data_ptr() == embedding.weight.untyped_storage().data_ptr()
    )
    assert shared == (family in kit.TIED)
    # every tensor of the file is accounted for, once for each of its names in the module
    names = set(load_file(folder / "model.safetensors"))
    assert set(model.file_names.values()) == names
    assert set(model.file_names) == set(module.state_dict())
    targets = {target.weight_name for target in find_targets(module, ("auto",))}
    assert targets
    assert not [name for name in targets if "head" in name or "embed" in name or "wte" in name]
    if shared:
        with pytest.raises(ModelError, match="is tied to"):
            find_targets(module, ("lm_head",))


def test_onnx_equals_torch(family, tmp_path, device):
    """At several batch sizes and lengths, the shortest too, and in a process without torch."""
    model = opened(shallow(family, tmp_path / family), tmp_path / "base")
    inputs = model.encoder.encode(texts())
    backbone = model.backbone.eval()
    path = tmp_path / "model.onnx"
    files = export_onnx(backbone, inputs.batch(np.arange(2)), model.dynamic_axes, path, metadata={})
    # all weights are there under their own names; of a tied pair one of the two
    state = {name for name in backbone.state_dict() if "lm_head" not in name}
    tied = {name for name in state if name not in files.layout}
    assert len(tied) == (family in kit.TIED and "model.lm_head.weight" in files.layout)
    rows = ([0, 1, 2], [3], [4], [1, 4, 0, 2, 3])
    batches = [inputs.batch(np.array(r)) for r in rows]
    batches.append({name: value[:, :1] for name, value in batches[0].items()})
    parity = check_parity(backbone, path, batches, threads=1)
    assert parity.max_abs_error < 1e-4
    assert parity.agreement == 1.0
    assert parity.batch_sizes == (3, 1, 1, 5, 3)
    assert_the_device_agrees(device, path, backbone, batches, axis=2)


def test_a_pad_token_changes_nothing(tmp_path):
    logits = []
    for pad in (False, True):
        folder = kit.save_tokenizer(
            kit.llama(tmp_path / f"{pad}", pad_token_id=0 if pad else 7), pad=pad
        )
        model = opened(folder, tmp_path / f"base{pad}")
        batch = model.encoder.encode(texts()).batch(np.array([1, 3]))
        assert int(batch["input_ids"][0, -1]) == (0 if pad else 7)
        with torch.no_grad():
            logits.append(model.backbone(**batch)[0, :4])
    torch.testing.assert_close(logits[0], logits[1])


def test_texts_are_cut_and_then_do_not_end(tmp_path):
    options = ModelOptions(max_length=5)
    model = opened(kit.llama(tmp_path / "llama"), tmp_path / "base", options=options)
    batch = model.encoder.encode(texts()).batch(np.array([0, 1]))
    assert batch["input_ids"].shape == (2, 5)
    assert int(batch["input_ids"][0, 4]) != ENDS
    assert batch["input_ids"][1].tolist()[3:] == [ENDS, 0]
    assert batch["attention_mask"][1].tolist() == [1, 1, 1, 1, 0]
    assert "end token" in model.notes[0]


def test_no_end_token(tmp_path):
    folder = kit.save_tokenizer(kit.llama(tmp_path / "llama"), end=False)
    model = opened(folder, tmp_path / "base")
    batch = model.encoder.encode(texts()).batch(np.array([1, 0]))
    assert batch["input_ids"][0].tolist()[3:] == [0] * (batch["input_ids"].shape[1] - 3)
    assert model.notes == ("Texts are cut to 64 tokens (--max-length).",)


def test_half_precision_files_are_raised(tmp_path):
    folder = kit.smollm(tmp_path / "smollm")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.to(torch.bfloat16).save_pretrained(folder)
    loaded = opened(folder, tmp_path / "base")
    assert loaded.file_dtype == "bfloat16"
    assert {p.dtype for p in loaded.backbone.parameters()} == {torch.float32}
    module = loaded.backbone.model
    assert module.get_output_embeddings().weight is module.get_input_embeddings().weight


@pytest.mark.parametrize("family", ["qwen2", "smollm"])  # the others: the whole way, below
def test_as_an_encoder_for_labels(family, tmp_path):
    """The bare model; its features are the mean over the tokens of a text, whatever the padding."""
    model = opened(shallow(family, tmp_path / family), tmp_path / "base", "classification")
    assert model.feature_size == 32
    assert model.source.options["pooling"] == "mask_mean"
    inputs = model.encoder.encode(texts("classification"))
    with torch.no_grad():
        together = model.backbone(**inputs.batch(np.arange(len(TEXTS))))
        alone = torch.cat([model.backbone(**inputs.batch(np.array([i]))) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    path = tmp_path / "model.onnx"
    example = inputs.batch(np.arange(2))
    export_onnx(model.backbone.eval(), example, model.dynamic_axes, path, metadata={})
    batches = [inputs.batch(np.array(rows)) for rows in ([0, 1, 2], [4])]
    assert check_parity(model.backbone, path, batches, threads=1).max_abs_error < 1e-4


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_with_a_classifier_of_its_own(family, tmp_path):
    """It reads the last token, which the padding must not be taken for."""
    names = {"id2label": {0: "0", 1: "1"}, "label2id": {"0": 0, "1": 1}}
    folder = shallow(family, tmp_path / family, "ForSequenceClassification", **names)
    model = opened(folder, tmp_path / "base", "classification")
    assert model.source.options["pooling"] == "logits"
    assert model.base_head is not None
    assert model.base_head.labels == ("0", "1")
    inputs = model.encoder.encode(texts("classification"))
    with torch.no_grad():
        together = model.backbone(**inputs.batch(np.arange(len(TEXTS))))
        alone = torch.cat([model.backbone(**inputs.batch(np.array([i]))) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    path = tmp_path / "model.onnx"
    example = inputs.batch(np.arange(2))
    export_onnx(model.backbone.eval(), example, model.dynamic_axes, path, metadata={})
    batches = [inputs.batch(np.array(rows)) for rows in ([0, 1, 2], [4])]
    assert check_parity(model.backbone, path, batches, threads=1).max_abs_error < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_whole_way_as_a_classifier(family, tmp_path):
    folder = shallow(family, tmp_path / family)
    config = AdaptConfig(train=TrainConfig(epochs=2, learning_rate=5e-3))
    for number, topics in enumerate((("sport", "food"), ("travel", "money"))):
        data = write_jsonl(tmp_path / f"{number}.jsonl", topics)
        result = adapt(data, model=str(folder), workspace=tmp_path / "w", config=config)
        assert result.promoted, result.reason
    test = write_jsonl(tmp_path / "test.jsonl", ("sport", "food", "travel", "money"), 10, seed=9)
    found = evaluate(tmp_path / "w", test, compare_torch=True)
    assert found.agreement == 1.0
    assert found.accuracy > 0.6  # a quarter by chance
    # a tied model's file goes on holding one tensor for both
    generation = Workspace.open(tmp_path / "w").published(None)
    names = set(load_file(generation.file("model.safetensors")))
    assert set(load_file(folder / "model.safetensors")) <= names


def test_an_encoder_is_no_language_model(tmp_path):
    folder = kit.llama(tmp_path / "llama", suffix="Model")
    with pytest.raises(ModelError, match=r"expected a causal language model.*found LlamaModel"):
        opened(folder, tmp_path / "base")


def test_a_tokenizer_of_another_model(tmp_path):
    folder = kit.llama(tmp_path / "llama", vocab_size=20)
    with pytest.raises(ModelError, match="a tokenizer with ids below 20"):
        opened(folder, tmp_path / "base")


def test_weights_of_another_architecture(tmp_path):
    folder = kit.llama(tmp_path / "llama")
    other = kit.gpt2(tmp_path / "gpt2")
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(ModelError):
        opened(folder, tmp_path / "base")
