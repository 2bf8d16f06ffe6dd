"""The merged model's folder is one that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig
from transformers import BertForSequenceClassification as Bert

from edge_pslora.errors import EdgePsloraError
from edge_pslora.exporters.model_card import ModelCard, card_text
from edge_pslora.exporters.safetensors_model import config_with_labels, write_merged_model


def save_base(folder: Path) -> Bert:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
    )
    model = Bert(config).eval()
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "source.json").write_text("{}")
    return model


def test_transformers_loads_more_labels_than_the_base_had(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    tensors = {name: t.numpy() for name, t in save_base(base).state_dict().items()}
    rng = np.random.default_rng(0)
    labels = ("cat", "dog", "bird")
    tensors["classifier.weight"] = rng.normal(size=(3, 8)).astype(np.float32)
    tensors["classifier.bias"] = np.zeros(3, np.float32)
    card = ModelCard("Merged", "transformers", base_model="tiny", labels=labels)
    paths = write_merged_model(out, tensors, base_dir=base, labels=labels, card=card)
    assert sorted(p.name for p in paths) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert sorted(paths) == sorted(out.iterdir())
    loaded = AutoModelForSequenceClassification.from_pretrained(out)
    assert loaded.config.id2label == dict(enumerate(labels))
    for name, tensor in loaded.state_dict().items():
        assert np.array_equal(tensor.numpy(), tensors[name]), name


def test_same_input_same_bytes_and_no_base_needed(tmp_path: Path) -> None:
    tensors = {"b.weight": np.ones((2, 2), np.float32), "a": np.zeros(3, np.int64)}
    contents = []
    for order in (tensors, dict(reversed(tensors.items()))):
        (path,) = write_merged_model(tmp_path, order)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


def test_values_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    with pytest.raises(EdgePsloraError, match="finite"):
        write_merged_model(tmp_path, {"a": np.float32([1.0, np.nan])})
    assert not list(tmp_path.iterdir())


def test_card_header_holds_whatever_the_names_are() -> None:
    card = ModelCard(
        'line\nbreak | "q"',
        "peft",
        base_model='x: "y"\n---\nz',
        tags=("a: b", "lora"),
        labels=[f"<b>{k}</b>|" for k in range(60)],
        facts={"a|b": "c\nd"},
    )
    text = card_text(card)
    header = text.split("---\n")[1].splitlines()
    assert header[0] == "library_name: peft"
    assert json.loads(header[1].removeprefix("base_model: ")) == card.base_model
    assert [json.loads(line.removeprefix("- ")) for line in header[3:]] == [
        "edge-pslora",
        "continual-learning",
        "lora",
        "a: b",
    ]
    assert "and 10 more" in text
    assert "<b>" not in text
    assert "| a\\|b | c d |" in text


@pytest.mark.parametrize(
    ("task_type", "problem"),
    [
        ("multilabel", "multi_label_classification"),
        ("regression", "regression"),
        ("classification", None),
    ],
)
def test_transformers_is_told_what_kind_of_task_it_is(
    tmp_path: Path, task_type: str, problem: str | None
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    config = json.loads(config_with_labels(tmp_path / "config.json", ("a", "b"), task_type))
    assert config.get("problem_type") == problem
    assert config["label2id"] == {"a": 0, "b": 1}
