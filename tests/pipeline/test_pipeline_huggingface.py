"""Hugging Face folders from session to session, and what other people's tools make of the results."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_pslora import AdaptConfig, AdaptResult, TrainConfig, Workspace, adapt, evaluate
from edge_pslora.exporters.adapter_file import open_adapter
from edge_pslora.exporters.export import export_generation
from edge_pslora.exporters.export_options import ExportOptions
from edge_pslora.exporters.run import open_onnx, run_onnx
from edge_pslora.pipeline.exporting import export_with_model
from edge_pslora.workspace.tensors import read_tensors
from tests.pipeline import hf_kit
from tests.pipeline import pipeline_kit as kit

CONFIG = AdaptConfig(train=TrainConfig(learning_rate=2e-3, max_length=16))
PEFT_WARNS = pytest.mark.filterwarnings("ignore")  # PEFT's own warnings are not ours to fail on
FIRST, SECOND = ("sport", "food"), ("travel", "money")


@dataclass(frozen=True)
class Stream:
    base: Path
    workspace: Path
    results: tuple[AdaptResult, ...]
    test: Path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    """An encoder without a head, after two sessions of two topics each."""
    folder = tmp_path_factory.mktemp("encoder")
    base = hf_kit.bert_folder(folder / "tiny-bert")
    results = []
    for number, topics in enumerate((FIRST, SECOND)):
        data = kit.write_jsonl(folder / f"{number}.jsonl", topics)
        model = str(base) if number == 0 else None
        results.append(adapt(data, model=model, workspace=folder / "w", config=CONFIG))
    test = kit.write_jsonl(folder / "test.jsonl", tuple(kit.TOPICS), seed=5)
    return Stream(base, folder / "w", tuple(results), test)


def _tokens(folder: Path, test: Path) -> dict[str, torch.Tensor]:
    """The first texts of a file as transformers' own tokenizer encodes them."""
    import transformers

    rows = [json.loads(line)["text"] for line in test.read_text(encoding="utf-8").splitlines()[:9]]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return dict(tokenizer(rows, padding=True, return_tensors="pt"))


def _pooled(model: Any, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        hidden = model.eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    return (hidden * mask).sum(1) / mask.sum(1)


def _require_close(found: np.ndarray, wanted: np.ndarray) -> None:
    """To a few units of the last place of the largest: float32 has seven digits."""
    largest = max(10.0, float(np.abs(wanted).max()))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * largest)


def _onnx_logits(path: Path, tokens: dict[str, torch.Tensor]) -> np.ndarray:
    import onnxruntime

    wanted = {value.name for value in onnxruntime.InferenceSession(str(path)).get_inputs()}
    return run_onnx(path, {name: value.numpy() for name, value in tokens.items() if name in wanted})


def test_new_classes_join_the_old_ones(encoder):
    first, second = encoder.results
    assert first.promoted
    assert second.promoted
    assert first.metrics["labels"] == sorted(FIRST)
    assert second.metrics["labels"] == [*sorted(FIRST), *sorted(SECOND)]
    assert first.metrics["history_bytes"] == second.metrics["history_bytes"]
    found = evaluate(encoder.workspace, encoder.test, compare_torch=True)
    assert found.agreement == 1.0
    assert found.max_abs_error <= 1e-4
    assert found.accuracy > 0.7
    assert min(found.per_label.values()) > 0.5
    old = evaluate(encoder.workspace, encoder.test, generation=1)
    assert set(old.unknown_labels) == set(SECOND)


def test_the_base_is_kept_as_it_came(encoder):
    base = encoder.workspace / "base"
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (base / name).read_bytes() == (encoder.base / name).read_bytes()


@PEFT_WARNS
def test_peft_gives_the_logits_of_generation_one(encoder):
    """Base + adapter by PEFT, mean-pooled, through the head: what the ONNX file computes."""
    import transformers

    peft = pytest.importorskip("peft")
    folder = encoder.workspace / "generations" / "000001"
    base = transformers.AutoModel.from_pretrained(encoder.base, local_files_only=True)
    model = peft.PeftModel.from_pretrained(base, str(folder / "adapter"))
    head = read_tensors(folder / "head.safetensors")
    tokens = _tokens(encoder.base, encoder.test)
    logits = _pooled(model, tokens).numpy() @ head["weight"].T + head["bias"]
    _require_close(_onnx_logits(folder / "model.onnx", tokens), logits)
    # the adapter is not idle: without it the features are others
    bare = transformers.AutoModel.from_pretrained(encoder.base, local_files_only=True)
    assert float((_pooled(bare, tokens) - _pooled(model, tokens)).abs().max()) > 1e-3


@pytest.mark.parametrize("generation", [1, 2])
def test_transformers_loads_the_exported_model(encoder, tmp_path, generation):
    import transformers

    out = tmp_path / "out"
    export_generation(encoder.workspace, out, ExportOptions("safetensors"), generation=generation)
    model, report = transformers.AutoModel.from_pretrained(
        out, local_files_only=True, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    head = read_tensors(out / "head.safetensors")
    tokens = _tokens(out, encoder.test)
    logits = _pooled(model, tokens).numpy() @ head["weight"].T + head["bias"]
    path = encoder.workspace / "generations" / f"{generation:06d}" / "model.onnx"
    _require_close(_onnx_logits(path, tokens), logits)


@PEFT_WARNS
def test_peft_loads_the_export_of_a_later_generation(encoder, tmp_path):
    """From the second generation on the adapter is refactored from merged - base."""
    import transformers

    peft = pytest.importorskip("peft")
    out = tmp_path / "out"
    result = export_generation(encoder.workspace, out, ExportOptions("peft"))
    assert result.facts["max_relative_error"] < 1e-3
    base = transformers.AutoModel.from_pretrained(encoder.base, local_files_only=True)
    model = peft.PeftModel.from_pretrained(base, str(out))
    head = read_tensors(out / "head.safetensors")
    tokens = _tokens(encoder.base, encoder.test)
    logits = _pooled(model, tokens).numpy() @ head["weight"].T + head["bias"]
    found = _onnx_logits(encoder.workspace / "generations" / "000002" / "model.onnx", tokens)
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-2)


def test_a_classifier_of_the_base_is_kept_and_grows(tmp_path):
    import transformers

    base = hf_kit.bert_folder(tmp_path / "classifier", labels=FIRST, layers=1)
    # so fast that the old labels are forgotten: this is about names and files, so the gate is overruled
    train = replace(CONFIG.train, learning_rate=1e-2, epochs=8)
    config = replace(CONFIG, train=train, gate=replace(CONFIG.gate, force=True))
    labels = []
    for number, topics in enumerate((FIRST, SECOND)):
        data = kit.write_jsonl(tmp_path / f"{number}.jsonl", topics)
        result = adapt(data, model=str(base), workspace=tmp_path / "w", config=config)
        assert result.promoted, result.reason
        labels.append(result.metrics["labels"])
    # the order of the base's config.json, not of the alphabet; new ones behind
    assert labels == [list(FIRST), [*FIRST, "money", "travel"]]
    generation = Workspace.open(tmp_path / "w").current()
    assert generation is not None
    head = read_tensors(generation.file("head.safetensors"))
    assert "gram" not in head
    assert read_tensors(generation.file("model.safetensors"))["classifier.weight"].shape == (4, 32)
    out = tmp_path / "out"
    export_generation(tmp_path / "w", out, ExportOptions("safetensors"))
    model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        out, local_files_only=True, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert [model.config.id2label[i] for i in range(4)] == labels[1]
    tokens = _tokens(out, tmp_path / "1.jsonl")
    with torch.no_grad():
        logits = model.eval()(**tokens).logits.numpy()
    np.testing.assert_allclose(
        _onnx_logits(generation.file("model.onnx"), tokens), logits, rtol=0, atol=1e-5
    )
    # in a file that takes adapters it answers where none is active
    export_with_model(tmp_path / "w", tmp_path / "ort", ExportOptions("ort-adapter"))
    runner = open_onnx(tmp_path / "ort" / "model.onnx")
    arrays = {name: value.numpy() for name, value in tokens.items() if name in runner.input_types}
    with torch.no_grad():
        bare = transformers.AutoModelForSequenceClassification.from_pretrained(base).eval()
        np.testing.assert_allclose(runner.run(arrays), bare(**tokens).logits, rtol=0, atol=1e-5)
    assert json.loads(runner.metadata["pslora.labels"]) == list(FIRST)
    active = runner.using(open_adapter(tmp_path / "ort" / "generation-000002.onnx_adapter"))
    np.testing.assert_allclose(active.run(arrays), logits, rtol=0, atol=2e-2)


def test_a_classifier_of_unknown_labels_is_replaced_in_the_exported_folder(tmp_path):
    """LABEL_0 and LABEL_1 say nothing: the session's head must not stand beside an old classifier."""
    import transformers

    auto = transformers.AutoModelForSequenceClassification
    base = hf_kit.bert_folder(tmp_path / "classifier", labels=("LABEL_0", "LABEL_1"))
    data = kit.write_jsonl(tmp_path / "0.jsonl", (*FIRST, "money"))
    result = adapt(data, model=str(base), workspace=tmp_path / "w", config=CONFIG)
    assert result.promoted, result.reason
    out = tmp_path / "out"
    export_generation(tmp_path / "w", out, ExportOptions("safetensors"))
    model, report = auto.from_pretrained(out, local_files_only=True, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert [model.config.id2label[i] for i in range(3)] == result.metrics["labels"]
    tokens = _tokens(out, data)
    with torch.no_grad():
        logits = model.eval()(**tokens).logits.numpy()
    found = _onnx_logits(result.folder / "model.onnx", tokens)
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-5)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert card.startswith('---\nlibrary_name: transformers\nbase_model: "classifier"\ntags:\n')
    assert 'AutoModelForSequenceClassification.from_pretrained("FOLDER")' in card


def test_pictures(tmp_path):
    base = hf_kit.vit_folder(tmp_path / "tiny-vit")
    for number, labels in enumerate(((0, 1), (4, 6))):
        data = kit.write_images(tmp_path / f"{number}", labels, 120)
        result = adapt(data, model=str(base), workspace=tmp_path / "w", config=CONFIG)
        assert result.promoted, result.reason
    test = kit.write_images(tmp_path / "test", (0, 1, 4, 6), 80, part="test")
    found = evaluate(tmp_path / "w", test, compare_torch=True)
    assert found.agreement == 1.0
    assert found.accuracy > 0.55  # a quarter by chance
