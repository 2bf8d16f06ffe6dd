"""Tiny random Hugging Face folders, with the words of pipeline_kit.TOPICS."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipeline.pipeline_kit import TOPICS

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}


def bert_folder(folder: Path, labels: Sequence[str] | None = None, *, layers: int = 2) -> Path:
    """BertModel, or BertForSequenceClassification with these labels; random weights.

    layers: one where it is exported: that takes as long as the graph is.
    """
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = sorted({"the", "and", "a", *" ".join(TOPICS.values()).split()})
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
    config = transformers.BertConfig(
        **SIZES | {"num_hidden_layers": layers},
        **_labels(labels),
        vocab_size=len(vocabulary),
        pad_token_id=0,
        max_position_embeddings=24,
        initializer_range=0.3,
    )
    name = "BertModel" if labels is None else "BertForSequenceClassification"
    _save(folder, getattr(transformers, name), config)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings |= {f"{kind.lower()}_token": f"[{kind}]" for kind in ("PAD", "UNK", "CLS", "SEP")}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def vit_folder(folder: Path) -> Path:
    """A ViTModel of one layer for pictures of 16 x 16 pixels."""
    transformers = pytest.importorskip("transformers")
    one = SIZES | {"num_hidden_layers": 1}
    config = transformers.ViTConfig(**one, image_size=16, patch_size=4, initializer_range=0.2)
    return _save(folder, transformers.ViTModel, config)


def _labels(labels: Sequence[str] | None) -> dict[str, Any]:
    if labels is None:
        return {}
    names = dict(enumerate(labels))
    return {"id2label": names, "label2id": {name: index for index, name in names.items()}}


def _save(folder: Path, kind: Any, config: Any) -> Path:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = kind(config)
    model.save_pretrained(folder)
    return folder
