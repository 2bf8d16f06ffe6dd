"""Every family of text encoders, with and without a head, from its folder to a proven ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edge_pslora import AdaptResult, Workspace, adapt
from edge_pslora.data.types import Samples
from edge_pslora.exporters.export import export_generation
from edge_pslora.exporters.export_options import ExportOptions
from edge_pslora.workspace.tensors import read_tensors
from tests.families import family_kit
from tests.families.family_checks import (
    CONFIG,
    Served,
    assert_only_changed,
    assert_parity,
    assert_transformers_agrees,
    ends,
    served,
)
from tests.pipeline import pipeline_kit as kit
from tests.torch_free import TorchFree

transformers = pytest.importorskip("transformers")

LABELS = ("sport", "food")
BERT = ("self.query", "self.value", "intermediate.dense", "output.dense")
DISENTANGLED = ("query_proj", "value_proj", "intermediate.dense", "output.dense")
TARGETS = {
    "bert": BERT,
    "minilm": BERT,
    "distilbert": ("q_lin", "v_lin", "lin1", "lin2"),
    "roberta": BERT,
    "deberta": ("in_proj", "intermediate.dense", "output.dense"),
    "deberta-v2": DISENTANGLED,
    "deberta-v3": DISENTANGLED,
    "electra": BERT,
    "mpnet": ("attn.q", "attn.v", "intermediate.dense", "output.dense"),
    "albert": ("attention.query", "attention.value", "ffn", "ffn_output"),
    "gpt2": ("attn.c_attn", "mlp.c_fc", "mlp.c_proj"),
    "modernbert": ("attn.Wqkv", "mlp.Wi", "mlp.Wo"),
}
LAYERS = {"modernbert": 2}  # the two of albert share one set of weights
CASES = [
    *((name, headed) for name in ("bert", "distilbert", "roberta") for headed in (False, True)),
    *(("minilm", False), ("deberta", True), ("deberta-v2", True), ("deberta-v3", False)),
    *(("electra", True), ("mpnet", False), ("albert", True), ("modernbert", True), ("gpt2", True)),
]
TWO_SESSIONS = (("roberta", True), ("deberta-v3", False))
SLOW = pytest.mark.slow


def batches(found: Served) -> list[dict[str, torch.Tensor]]:
    """One text of one word, five of up to a dozen words: other sizes than the example's."""
    rng = np.random.default_rng(0)
    words = " ".join(kit.TOPICS.values()).split()
    texts = ["goal", *(" ".join(rng.choice(words, size)) for size in (12, 3, 7, 9, 5))]
    encoded = found.model.encoder.encode(
        Samples("text", "classification", texts, np.array(["sport"] * len(texts)))
    )
    return [encoded.batch(np.array([0])), encoded.batch(np.arange(1, 6))]


def learn(folder: Path, base: Path | None, topics: tuple[str, ...], n: int = 16) -> AdaptResult:
    data = kit.write_jsonl(folder / f"{'-'.join(topics)}.jsonl", topics, n=n)
    model = None if base is None else str(base)
    return adapt(data, model=model, workspace=folder / "w", config=CONFIG)


@pytest.mark.parametrize(
    ("name", "headed"),
    [pytest.param(*case, marks=SLOW if case in TWO_SESSIONS else ()) for case in CASES],
)
def test_a_text_family(tmp_path: Path, device: TorchFree, name: str, headed: bool) -> None:
    labels = LABELS if headed else None
    base = family_kit.TEXT_FAMILIES[name](tmp_path / "model", labels=labels)
    assert (base / "model.safetensors").stat().st_size < 40_000
    result = learn(tmp_path, base, LABELS)
    assert result.promoted, result.reason
    assert result.metrics["onnx_agreement"] == 1.0
    targets = [layer["name"] for layer in result.metrics["layers"]]
    assert ends(targets, TARGETS[name]) == set(TARGETS[name])
    assert len(targets) == LAYERS.get(name, 1) * len(TARGETS[name])
    assert not any("attention.output" in target for target in targets)
    found = served(tmp_path / "w", device)
    assert set(found.model.dynamic_axes.values()) == {("batch", "sequence")}
    short, long = batches(found)
    assert short["input_ids"].shape != long["input_ids"].shape
    assert_parity(found, (short, long))
    assert_only_changed(found, tmp_path / "w", targets)
    if headed:
        auto = transformers.AutoModelForSequenceClassification
        assert_transformers_agrees(tmp_path / "w", tmp_path / "out", auto, long)
    if (name, headed) in TWO_SESSIONS:
        a_second_session_with_new_labels(tmp_path, device, result)


def a_second_session_with_new_labels(tmp_path: Path, device: TorchFree, first: AdaptResult) -> None:
    second = learn(tmp_path, None, ("food", "travel", "money"))
    assert second.generation == first.generation + 1
    assert set(second.metrics["labels"]) == {*LABELS, "travel", "money"}
    generation = Workspace.open(tmp_path / "w").generation(second.generation)
    assert generation.labels[:2] == tuple(first.metrics["labels"])
    assert second.promoted, second.reason
    found = served(tmp_path / "w", device)
    assert_parity(found, batches(found))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_loads_a_later_adapter_of_gpt_2(tmp_path: Path, device: TorchFree) -> None:
    """Transposed weights through two sessions, a merge, an export and PEFT, which warns of nothing."""
    peft = pytest.importorskip("peft")
    base = family_kit.TEXT_FAMILIES["gpt2"](tmp_path / "model")
    results = [learn(tmp_path, base, LABELS), learn(tmp_path, None, ("food", "travel"))]
    assert results[1].promoted, results[1].reason
    out = tmp_path / "out"
    export = export_generation(tmp_path / "w", out, ExportOptions("peft"))
    assert export.facts["max_relative_error"] < 1e-3
    own = transformers.AutoModel.from_pretrained(base, local_files_only=True)
    model = peft.PeftModel.from_pretrained(own, str(out)).eval()
    found = served(tmp_path / "w", device)
    (batch, _) = batches(found)
    head = read_tensors(out / "head.safetensors")
    with torch.no_grad():
        features = (
            model(**batch).last_hidden_state.mean(1).numpy()
        )  # of one text: nothing is padded
    logits = found.onnx.run({name: value.numpy() for name, value in batch.items()})
    np.testing.assert_allclose(features @ head["weight"].T + head["bias"], logits, atol=1e-2)


def test_another_pad_token_is_said_aloud(tmp_path: Path, device: TorchFree) -> None:
    base = family_kit.TEXT_FAMILIES["bert"](tmp_path / "model")
    family_kit.save_tokenizer(base, family_kit.ROBERTA_SPECIAL, types=True)
    notes = learn(tmp_path, base, LABELS).metrics["notes"]
    (note,) = served(tmp_path / "w", device).model.notes
    assert note in notes
    assert "pads with the id 1, config.json says 0" in note
