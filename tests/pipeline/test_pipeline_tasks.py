"""Sets of labels and language models, from the files to the ONNX file and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers

from edge_pslora.config import AdaptConfig, StabilityConfig, TrainConfig
from edge_pslora.errors import ModelError, UsageError, WorkspaceError
from edge_pslora.evaluation import evaluate
from edge_pslora.exporters.adapter_file import open_adapter
from edge_pslora.exporters.export import export_generation
from edge_pslora.exporters.export_options import ExportOptions
from edge_pslora.exporters.run import open_onnx
from edge_pslora.pipeline import adapt
from edge_pslora.pipeline.exporting import export_with_model
from edge_pslora.workspace.workspace import Workspace
from tests.families import speech_kit
from tests.pipeline import hf_kit
from tests.pipeline import pipeline_kit as kit
from tests.pipeline.device_checks import assert_a_device_runs_it

CONFIG = AdaptConfig(train=TrainConfig(epochs=3, max_length=16))


def _tags(path: Path, names: tuple[str, ...], seed: int) -> Path:
    """Six columns; label i is given where column i is above 0."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(240, 6)).astype(np.float32)
    y = (x[:, : len(names)] > 0).astype(np.int64)
    np.savez(path, x=x, y=y, labels=np.array(names))
    return path


def test_sets_of_labels_grow_and_are_judged_by_f1(tmp_path, device):
    workspace = tmp_path / "w"
    first = adapt(_tags(tmp_path / "a.npz", ("x", "y"), 1), model="auto", workspace=workspace)
    assert first.promoted, first.reason
    assert first.metrics["metric"] == "f1"
    second = adapt(_tags(tmp_path / "b.npz", ("x", "y", "z"), 2), workspace=workspace)
    assert second.promoted, second.reason
    assert second.metrics["labels"] == ["x", "y", "z"]
    found = evaluate(workspace, _tags(tmp_path / "c.npz", ("x", "y", "z"), 3), compare_torch=True)
    assert found.metric == "f1"
    assert found.accuracy > 0.8
    assert found.agreement == 1.0
    assert 0 < found.figures["exact_match"] <= found.accuracy
    assert set(found.per_label) == {"x", "y", "z"}
    # the file itself: a logit above 0 is a yes
    onnx = open_onnx(second.folder / "model.onnx")
    data = np.load(tmp_path / "c.npz", allow_pickle=False)
    given = onnx.run({"x": data["x"]}) > 0
    assert np.mean(given == data["y"]) > 0.8
    assert json.loads(onnx.metadata["pslora.labels"]) == ["x", "y", "z"]
    prepared = json.loads(onnx.metadata["pslora.preparation"])
    assert prepared == {"modality": "table", "sample_shape": [6]}
    assert_a_device_runs_it(device, workspace)


def test_tags_of_texts_in_json_lines(tmp_path):
    rows = []
    for i in range(120):
        topics = [topic for j, topic in enumerate(kit.TOPICS) if (i >> j) & 1]
        words = [kit.TOPICS[topic].split()[i % 4] for topic in topics]
        rows.append({"text": " ".join(["the", *words, "and a"]), "labels": topics})
    path = tmp_path / "tags.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    result = adapt(path, model="auto", workspace=tmp_path / "w", config=CONFIG)
    assert result.promoted, result.reason
    assert set(result.metrics["labels"]) == set(kit.TOPICS)
    assert result.metrics["accuracy_after"] > 0.8


def _prose(path: Path, topic: str, seed: int) -> Path:
    """Sentences in which a topic's words follow each other in one order."""
    words = kit.TOPICS[topic].split()
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(150):
        start = int(rng.integers(len(words)))
        lines.append(" ".join(words[(start + i) % len(words)] for i in range(8)) + ".")
    path.write_text("\n\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("family", ["smollm", "gpt2"])
def test_a_language_model_goes_on_learning_from_plain_text(tmp_path, device, family):
    base = speech_kit.LANGUAGE[family](tmp_path / "base", **speech_kit.SHALLOW[family])
    workspace = tmp_path / "w"
    one, two = list(kit.TOPICS)[:2]
    config = replace(
        CONFIG,
        train=TrainConfig(epochs=4, max_length=16, learning_rate=5e-3),
        stability=StabilityConfig(weight=0.01),
    )
    first = adapt(_prose(tmp_path / "one.md", one, 1), model=str(base), workspace=workspace,
                  config=config)  # fmt: skip
    assert first.promoted, first.reason
    assert first.metrics["metric"] == "token_accuracy"
    assert first.metrics["labels"] == []
    second = adapt(_prose(tmp_path / "two.md", two, 2), workspace=workspace, config=config)
    assert second.metrics["perplexity_after"] < 0.8 * second.metrics["perplexity_before"]
    assert second.metrics["accuracy_after"] > second.metrics["accuracy_before"]
    found = evaluate(workspace, _prose(tmp_path / "three.md", one, 3), compare_torch=True)
    assert found.metric == "token_accuracy"
    assert found.figures["perplexity"] > 1.0
    assert found.agreement is not None
    assert found.agreement > 0.99
    folder = workspace / "generations" / "000001"
    ids = np.array([[5, 6, 7]])
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    logits = open_onnx(folder / "model.onnx").run(batch)
    assert logits.shape == (1, 3, len(speech_kit.VOCABULARY))
    assert_a_device_runs_it(device, workspace)
    for kind in ("onnx", "safetensors", "peft"):
        export_generation(workspace, tmp_path / kind, ExportOptions(kind))  # type: ignore[arg-type]
    _others_load_a_language_model(base, workspace, tmp_path)


def _others_load_a_language_model(base: Path, workspace: Path, folder: Path) -> None:
    """transformers the merged folder, PEFT the adapter, onnxruntime base and adapters: equal logits."""
    auto = transformers.AutoModelForCausalLM
    merged, report = auto.from_pretrained(
        folder / "safetensors", local_files_only=True, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert "AutoModelForCausalLM" in (folder / "safetensors" / "README.md").read_text()
    batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 5, 4]]), "attention_mask": torch.ones(2, 3)}
    arrays = {name: value.numpy() for name, value in batch.items()}
    published = Workspace.open(workspace).published(None)
    expected = open_onnx(published.file("model.onnx")).run(arrays)
    bare = auto.from_pretrained(base, local_files_only=True).eval()
    with torch.no_grad():
        np.testing.assert_allclose(merged.eval()(**batch).logits, expected, atol=1e-4)
        of_the_base = bare(**batch).logits.numpy()
        adapted = peft.PeftModel.from_pretrained(bare, str(folder / "peft")).eval()
        np.testing.assert_allclose(adapted(**batch).logits, expected, atol=2e-2)
    out = folder / "ort"
    facts = export_with_model(workspace, out, ExportOptions("ort-adapter", generations=2)).facts
    runner = open_onnx(out / "model.onnx")
    np.testing.assert_allclose(runner.run(arrays), of_the_base, atol=1e-4)
    active = runner.using(open_adapter(out / facts["adapters"][-1]["file"]))
    assert np.abs(active.run(arrays) - expected).max() <= 2e-2
    assert np.abs(of_the_base - expected).max() > 0.1


def test_what_does_not_go_together_is_said(tmp_path):
    text = _prose(tmp_path / "one.md", next(iter(kit.TOPICS)), 1)
    encoder = hf_kit.bert_folder(tmp_path / "bert")
    with pytest.raises(ModelError, match="causal language model"):
        adapt(text, model=str(encoder), workspace=tmp_path / "w1", config=CONFIG)
    with pytest.raises(ModelError, match="language"):
        adapt(text, model="auto", workspace=tmp_path / "w2", config=CONFIG)
    base = speech_kit.llama(tmp_path / "llama")
    analytic = replace(CONFIG, head=replace(CONFIG.head, kind="analytic"))
    with pytest.raises(UsageError, match="language"):
        adapt(text, model=str(base), workspace=tmp_path / "w3", config=analytic)
    for name in ("w1", "w2", "w3"):
        assert not (tmp_path / name / "workspace.json").exists()


def test_later_sessions_read_as_the_first_did(tmp_path, run):
    rng = np.random.default_rng(0)

    def table(name: str) -> Path:
        lines = ["kind,a,b,id"]
        for i in range(80):
            a = rng.normal()
            lines.append(f"{'up' if a > 0 else 'down'},{a:.4f},{-9 if i % 7 == 0 else i},{i}")
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n")
        return path

    workspace = tmp_path / "w"
    flags = ("--label-column", "kind", "--missing", "-9", "--ignore-columns", "id")
    done = run("adapt", table("1.csv"), "--model", "auto", "--workspace", workspace, *flags)
    assert done.code == 0, done
    # without the flags the label would be the last column, id
    assert run("adapt", table("2.csv"), "--workspace", workspace, "--force").code == 0
    found = run("eval", workspace, table("3.csv"), "--json")
    assert found.code == 0, found
    assert found.facts["accuracy"] > 0.8
    assert set(found.facts["per_label"]) == {"up", "down"}
    # what is given wins over what was kept
    wrong = run("eval", workspace, table("4.csv"), "--label-column", "id", "--json")
    assert wrong.code in (0, WorkspaceError.exit_code)
    assert wrong.facts.get("accuracy", 0.0) < 0.5
