"""Tiny random models in the files that a user would have."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_pslora.data.types import Samples

WORDS = ("a", "bad", "film", "good", "is", "not", "the", "this", "very", "was")
TEXTS = ("this film is good", "the film was not very good", "bad", "this is a very bad film")


@pytest.fixture
def texts() -> Samples:
    return Samples("text", "classification", list(TEXTS), np.array(["pos", "neg", "neg", "neg"]))


@pytest.fixture
def image_files(tmp_path: Path) -> list[Path]:
    """Six pictures of different shapes and modes."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    files = []
    for index, mode in enumerate(("RGB", "L", "RGBA", "P", "RGB", "1")):
        pixels = rng.integers(0, 256, (20 + 8 * index, 40, 3), dtype=np.uint8)
        files.append(folder / f"{index}.png")
        image.fromarray(pixels).convert(mode).save(files[-1])
    return files


@pytest.fixture
def images(image_files: list[Path]) -> Samples:
    return Samples("image", "classification", image_files, np.array(list("ababab")))


def save_tokenizer(folder: Path, kind: str = "bert") -> None:
    """A word-level tokenizer.json, built with the tokenizers library."""
    tokenizers = pytest.importorskip("tokenizers")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "model_input_names": inputs if kind == "bert" else ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def tiny_config(kind: str, **more: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    common = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    common["intermediate_size"] = 32
    words = {"vocab_size": 4 + len(WORDS), "pad_token_id": 0}
    if kind == "bert":
        return transformers.BertConfig(**common, **words, max_position_embeddings=24, **more)
    if kind == "roberta":
        return transformers.RobertaConfig(**common, **words, max_position_embeddings=24, **more)
    if kind == "distilbert":
        return transformers.DistilBertConfig(
            dim=16,
            n_layers=2,
            n_heads=2,
            hidden_dim=32,
            max_position_embeddings=24,
            **words,
            **more,
        )
    if kind == "vit":
        return transformers.ViTConfig(**common, image_size=32, patch_size=8, **more)
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **more
    )


CLASS_NAMES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "distilbert": "DistilBert",
    "vit": "ViT",
    "resnet": "ResNet",
}


@pytest.fixture
def hf_folder(tmp_path: Path) -> Callable[..., Path]:
    """hf_folder("bert", "ForSequenceClassification", labels=["neg", "pos"]) -> the saved folder."""

    def build(
        kind: str,
        suffix: str = "Model",
        *,
        labels: Sequence[str] | None = None,
        dtype: torch.dtype = torch.float32,
        **more: Any,
    ) -> Path:
        transformers = pytest.importorskip("transformers")
        if labels is not None:
            more["id2label"] = dict(enumerate(labels))
            more["label2id"] = {label: index for index, label in enumerate(labels)}
        folder = tmp_path / f"{kind}{suffix}"
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model = getattr(transformers, CLASS_NAMES[kind] + suffix)(tiny_config(kind, **more))
        transformers.utils.logging.disable_progress_bar()
        model.to(dtype).save_pretrained(folder)
        if kind in ("bert", "roberta", "distilbert"):
            save_tokenizer(folder, kind)
        return folder

    return build
