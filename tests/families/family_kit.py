"""Tiny random Hugging Face folders, one builder for each family of text and image models.

FAMILIES: name -> builder; builder(folder, labels=None) writes config.json, model.safetensors and the
tokenizer's or the processor's file, the same bytes always, and gives the folder back. With `labels`
the model has a classification head for them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipeline.pipeline_kit import TOPICS

Builder = Callable[..., Path]

WORDS = sorted({"the", "and", "a", *" ".join(TOPICS.values()).split()})
BERT_SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"}
ROBERTA_SPECIAL = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>"}
VOCABULARY = len(WORDS) + 4
POSITIONS = 32
SIDE = 16

# one layer, except where layers differ or share weights: an export takes as long as its graph is
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
TEXT = {
    **SIZES,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.3,
}
IMAGE = {**SIZES, "image_size": SIDE, "patch_size": 4, "initializer_range": 0.2}
DISTIL = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24}
DISENTANGLED = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
CONVNEXT = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2}

# family -> (prefix of transformers' classes, configuration beyond TEXT)
TEXT_CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {}),
    "minilm": ("Bert", {"type_vocab_size": 2, "layer_norm_eps": 1e-12}),
    "distilbert": ("DistilBert", DISTIL),
    "roberta": ("Roberta", {"pad_token_id": 1, "type_vocab_size": 1}),
    "deberta": ("Deberta", {**DISENTANGLED, "max_relative_positions": 8}),
    "deberta-v2": (
        "DebertaV2",
        # the v2 models have a convolution beside the first layer
        {**DISENTANGLED, "position_buckets": 8, "conv_kernel_size": 3, "conv_act": "gelu"},
    ),
    "deberta-v3": (
        "DebertaV2",
        {
            **DISENTANGLED,
            "position_buckets": 8,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
        },
    ),
    "electra": ("Electra", {"embedding_size": 8}),
    "mpnet": ("MPNet", {"pad_token_id": 1}),
    "albert": ("Albert", {"embedding_size": 8, "num_hidden_layers": 2}),
    "gpt2": (
        "GPT2",
        {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": POSITIONS}
        | {"bos_token_id": None, "eos_token_id": None},
    ),
    "modernbert": (
        "ModernBert",
        {"num_hidden_layers": 2, "local_attention": 8, "initializer_cutoff_factor": 2.0}
        | {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    ),
}

PLAIN = {"do_resize": True, "size": {"height": SIDE, "width": SIDE}, "do_normalize": True}
CROPPED = {
    "do_resize": True,
    "size": {"shortest_edge": 20},
    "do_center_crop": True,
    "crop_size": {"height": SIDE, "width": SIDE},
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.4],
}
SHORTEST = {"do_resize": True, "size": {"shortest_edge": SIDE}, "crop_pct": 0.875}

MOBILE = {"depth_multiplier": 0.05, "min_depth": 8, "image_size": SIDE}

# family -> (prefix, configuration, preprocessor_config.json)
IMAGE_CLASSES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "vit": ("ViT", IMAGE, PLAIN),
    # its class token starts at zero: the first layer has no query
    "deit": ("DeiT", {**IMAGE, "num_hidden_layers": 2}, CROPPED),
    "dinov2": ("Dinov2", {**IMAGE, "mlp_ratio": 2}, CROPPED),
    "convnext": ("ConvNext", CONVNEXT, SHORTEST),
    "mobilenet-v1": ("MobileNetV1", MOBILE, CROPPED),
    "mobilenet-v2": ("MobileNetV2", {**MOBILE, "finegrained_output": True}, CROPPED),
    "resnet": (
        "ResNet",
        {"embedding_size": 8, "hidden_sizes": [8, 16, 16], "depths": [1, 2, 1]},
        SHORTEST,
    ),
    "swin": (
        "Swin",
        {"image_size": SIDE, "patch_size": 2, "embed_dim": 8, "depths": [1, 1]}
        | {"num_heads": [1, 2], "window_size": 4},
        PLAIN,
    ),
}


def text_folder(name: str, folder: Path, labels: Sequence[str] | None = None, **more: Any) -> Path:
    """A text model of a family with a word-level tokenizer for pipeline_kit.TOPICS."""
    prefix, settings = TEXT_CLASSES[name]
    special = ROBERTA_SPECIAL if settings.get("pad_token_id") == 1 else BERT_SPECIAL
    defaults = {**TEXT, "pad_token_id": list(special).index("pad")}
    save_model(folder, prefix, "ForSequenceClassification", defaults | settings | more, labels)
    save_tokenizer(folder, special, types=prefix in ("Bert", "Electra", "Albert"))
    return folder


def image_folder(name: str, folder: Path, labels: Sequence[str] | None = None, **more: Any) -> Path:
    """An image model of a family for pictures of 16 x 16 pixels, with its processor's file."""
    prefix, settings, processor = IMAGE_CLASSES[name]
    save_model(folder, prefix, "ForImageClassification", settings | more, labels)
    content = {**processor, "image_processor_type": f"{prefix}ImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


TEXT_FAMILIES: dict[str, Builder] = {
    name: functools.partial(text_folder, name) for name in TEXT_CLASSES
}
IMAGE_FAMILIES: dict[str, Builder] = {
    name: functools.partial(image_folder, name) for name in IMAGE_CLASSES
}
FAMILIES: dict[str, Builder] = {**TEXT_FAMILIES, **IMAGE_FAMILIES}


def save_model(
    folder: Path,
    prefix: str,
    headed: str,
    settings: Mapping[str, Any],
    labels: Sequence[str] | None = None,
) -> Path:
    """prefix + "Model", or prefix + `headed` with these labels, with seeded random weights."""
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    names = None if labels is None else dict(enumerate(labels))
    more = (
        {} if names is None else {"id2label": names, "label2id": {v: k for k, v in names.items()}}
    )
    config = getattr(transformers, f"{prefix}Config")(**settings, **more)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = getattr(transformers, prefix + ("Model" if labels is None else headed))(config)
        for module in model.modules():
            # 0.02 in a deep network leaves no signal, and of a depthwise kernel one pixel sees one tap
            if isinstance(module, torch.nn.Conv2d) and module.groups == 1:
                torch.nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, torch.nn.Conv2d):
                torch.nn.init.normal_(module.weight, std=1.1)
    model.save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path, special: Mapping[str, str], *, types: bool = False) -> None:
    """A word-level tokenizer.json. special: kind -> token, in the order of their ids."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {word: index for index, word in enumerate([*special.values(), *WORDS])}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(vocabulary, unk_token=special["unk"])
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    first, last = special["cls"], special["sep"]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{first} $A {last}",
        special_tokens=[(first, vocabulary[first]), (last, vocabulary[last])],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    inputs = ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]
    settings: dict[str, Any] = {f"{kind}_token": token for kind, token in special.items()}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": inputs}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
