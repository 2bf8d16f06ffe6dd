"""Folders that do not fit together: one line, exit code 4, nothing left behind, no code run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.families import family_kit
from tests.pipeline import pipeline_kit as kit

pytest.importorskip("transformers")

Change = Callable[[Path], None]
LABELS = ("sport", "food")


def edited(name: str, **values: Any) -> Change:
    """A JSON file of the folder with other values; None removes one."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8")) | values
        kept = {key: value for key, value in content.items() if value is not None}
        (folder / name).write_text(json.dumps(kept), encoding="utf-8")

    return change


def config(**values: Any) -> Change:
    return edited("config.json", **values)


def one_word_more(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["vocab"]["zebra"] = family_kit.VOCABULARY
    path.write_text(json.dumps(content), encoding="utf-8")


def bert_tokenizer(folder: Path) -> None:
    family_kit.save_tokenizer(folder, family_kit.BERT_SPECIAL)


def weights_of(name: str) -> Change:
    def change(folder: Path) -> None:
        other = family_kit.FAMILIES[name](folder.parent / "other")
        shutil.copyfile(other / "model.safetensors", folder / "model.safetensors")

    return change


def remote_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(family_kit.WORDS), encoding="utf-8")
    remote = {
        "tokenizer_class": "HyperTokenizer",
        "auto_map": {"AutoTokenizer": ["tok.Hyper", None]},
    }
    edited("tokenizer_config.json", **remote)(folder)
    (folder / "tok.py").write_text("raise SystemExit('remote code ran')\n", encoding="utf-8")


def remote_model(folder: Path) -> None:
    names = {"AutoConfig": "code.HyperConfig", "AutoModel": "code.HyperModel"}
    config(model_type="hyperbert", auto_map=names)(folder)
    (folder / "code.py").write_text("raise SystemExit('remote code ran')\n", encoding="utf-8")


def written(name: str, content: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_text(content, encoding="utf-8")

    return change


CASES: dict[str, tuple[str, Change, str]] = {
    "a word beyond the embedding": ("bert", one_word_more, r"ids below 47.*id 47 of 'zebra'"),
    "a special token beyond the embedding": (
        "bert",
        edited("tokenizer_config.json", pad_token="<new>"),
        r"ids below 47.*id 47 of '<new>'",
    ),
    "positions that start from another pad token": (
        "roberta",
        bert_tokenizer,
        r"pads with the id 1.*the id 0 of '\[PAD\]'",
    ),
    "a tokenizer that is another file": ("bert", written("tokenizer.json", "{}"), "a tokenizer"),
    "a tokenizer that is empty": ("bert", written("tokenizer.json", ""), "a tokenizer"),
    "a tokenizer of remote code": ("bert", remote_tokenizer, "a tokenizer"),
    "weights of another family": ("bert", weights_of("distilbert"), r"every weight of BertModel"),
    "weights of another kind of model": (
        "bert",
        weights_of("resnet"),
        r"every weight of BertModel",
    ),
    "fewer layers than config.json says": (
        "bert",
        config(num_hidden_layers=2),
        r"16 missing, the first is encoder\.layer\.1",
    ),
    "a smaller model than config.json says": (
        "bert",
        config(hidden_size=32),
        r"LayerNorm\.bias: expected shape \[32\].*found \[16\] and \d+ more",
    ),
    "convolutions of other sizes": (
        "resnet",
        config(hidden_sizes=[8, 16, 32]),
        r"convolution\.weight: expected shape \[8, 16, 1, 1\].*found \[4, 16, 1, 1\]",
    ),
    "a model_type that nobody knows": ("bert", config(model_type="hyperbert"), "hyperbert"),
    "no model_type": ("bert", config(model_type=None), "model_type"),
    "a model of remote code": ("bert", remote_model, "without remote code.*custom code"),
    "a value of the wrong type": ("bert", config(hidden_size="x"), "hidden_size"),
    "heads that do not divide": ("bert", config(num_attention_heads=3), "attention heads"),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_nothing_changed(
    tmp_path: Path, run: Callable[..., kit.Outcome], name: str
) -> None:
    family, change, message = CASES[name]
    folder = family_kit.FAMILIES[family](tmp_path / "model")
    change(folder)
    data = (
        kit.write_images(tmp_path / "data", (0, 1), 12)
        if family in family_kit.IMAGE_FAMILIES
        else kit.write_jsonl(tmp_path / "data.jsonl", LABELS, n=6)
    )
    before = kit.snapshot(folder)
    outcome = run("adapt", data, "--model", folder, "--workspace", tmp_path / "w")
    assert outcome.code == 4
    assert outcome.facts["error"] == "ModelError"
    assert "\n" not in outcome.facts["message"]
    assert re.search(message, outcome.facts["message"]), outcome.facts["message"]
    assert kit.snapshot(folder) == before
    assert not (tmp_path / "w" / "workspace.json").exists()


def test_a_head_of_another_size_is_refused(tmp_path: Path, run: Callable[..., kit.Outcome]) -> None:
    folder = family_kit.FAMILIES["bert"](tmp_path / "model", labels=LABELS)
    three = {"a": 0, "b": 1, "c": 2}
    config(label2id=three, id2label={str(v): k for k, v in three.items()})(folder)
    data = kit.write_jsonl(tmp_path / "data.jsonl", LABELS, n=6)
    outcome = run("adapt", data, "--model", folder, "--workspace", tmp_path / "w")
    assert outcome.code == 4
    assert "classifier.bias: expected shape [3]" in outcome.facts["message"]


def test_code_in_a_folder_of_a_known_family_is_neither_run_nor_copied(
    tmp_path: Path, run: Callable[..., kit.Outcome]
) -> None:
    folder = family_kit.FAMILIES["bert"](tmp_path / "model")
    remote_model(folder)
    config(model_type="bert")(folder)
    data = kit.write_jsonl(tmp_path / "data.jsonl", LABELS, n=12)
    outcome = run("adapt", data, "--model", folder, "--workspace", tmp_path / "w", "--epochs", 1)
    assert outcome.code == 0, outcome.facts
    assert not list((tmp_path / "w").rglob("*.py"))
