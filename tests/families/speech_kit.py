"""Tiny random Hugging Face folders of audio and causal language models, as a user would have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipeline.pipeline_kit import TOPICS

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
WORDS = sorted({"the", "and", "a", *" ".join(TOPICS.values()).split()})
VOCABULARY = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
LAYERS = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
DECODER = {
    **LAYERS,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": 64,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    **{name: DECODER[name] for name in ("vocab_size", "initializer_range")},
    **{name: DECODER[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
}
# a receptive field of 136 samples, a frame every 64: 8 ms of sound at 8 kHz
CONVOLUTIONS = {"conv_dim": (16, 16), "conv_kernel": (16, 16), "conv_stride": (8, 8)}
RATE = 8_000


def wav2vec2(folder: Path, suffix: str = "Model", **more: Any) -> Path:
    """Group norm at its start, no mask: as wav2vec2-base."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Wav2Vec2Config(
        **LAYERS,
        **CONVOLUTIONS,
        intermediate_size=48,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        initializer_range=0.2,
        classifier_proj_size=24,
        **more,
    )
    _save(folder, getattr(transformers, f"Wav2Vec2{suffix}"), config)
    layer = more.get("feat_extract_norm") == "layer"
    extractor = transformers.Wav2Vec2FeatureExtractor(
        sampling_rate=RATE, return_attention_mask=layer
    )
    extractor.save_pretrained(folder)
    return folder


def wav2vec2_masked(folder: Path, suffix: str = "Model", **more: Any) -> Path:
    """Layer norms, and a mask for the padding: as the larger Wav2Vec2 models."""
    return wav2vec2(
        folder, suffix, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True, **more
    )


def ast(folder: Path, suffix: str = "Model", **more: Any) -> Path:
    """Spectrograms of 32 frames and 32 bands."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ASTConfig(
        **LAYERS
        | {"num_hidden_layers": 2},  # the class token starts at zero: the first has no query
        intermediate_size=48,
        patch_size=8,
        frequency_stride=8,
        time_stride=8,
        max_length=32,
        num_mel_bins=32,
        initializer_range=0.2,
        **more,
    )
    _save(folder, getattr(transformers, f"AST{suffix}"), config)
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=32, mean=-5.0, std=4.0)
    extractor.save_pretrained(folder)
    return folder


def gpt2(folder: Path, suffix: str = "LMHeadModel", **more: Any) -> Path:
    """Tied, and its products are transformers' Conv1D."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(**{**GPT2, **more})
    _save(folder, getattr(transformers, f"GPT2{suffix}"), config)
    return save_tokenizer(folder)


def llama(folder: Path, suffix: str = "ForCausalLM", **more: Any) -> Path:
    """Untied."""
    return _decoder(folder, "Llama", suffix, {"tie_word_embeddings": False, **more})


def qwen2(folder: Path, suffix: str = "ForCausalLM", **more: Any) -> Path:
    """Tied, and with its own tokenizer, which ends and pads with one token."""
    tied = {"tie_word_embeddings": True, "eos_token_id": 0, "bos_token_id": None, "vocab_size": 320}
    _decoder(folder, "Qwen2", suffix, {**tied, **more})
    return save_byte_pairs(folder)


def qwen3(folder: Path, suffix: str = "ForCausalLM", **more: Any) -> Path:
    return _decoder(folder, "Qwen3", suffix, {"head_dim": 8, "tie_word_embeddings": False, **more})


def smollm(folder: Path, suffix: str = "ForCausalLM", **more: Any) -> Path:
    """Llama's architecture with tied embeddings."""
    return _decoder(folder, "Llama", suffix, {"tie_word_embeddings": True, **more})


AUDIO: dict[str, Callable[..., Path]] = {
    "wav2vec2": wav2vec2,
    "wav2vec2-masked": wav2vec2_masked,
    "ast": ast,
}
LANGUAGE: dict[str, Callable[..., Path]] = {
    "gpt2": gpt2,
    "llama": llama,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "smollm": smollm,
}
TIED = {"gpt2", "qwen2", "smollm"}
# for tests that export: that takes as long as the graph is
SHALLOW: dict[str, dict[str, int]] = {
    name: {"n_layer" if name == "gpt2" else "num_hidden_layers": 1} for name in LANGUAGE
}


def save_tokenizer(folder: Path, *, pad: bool = False, end: bool = True) -> Path:
    """A word-level tokenizer that puts <s> in front, as Llama's does; without a pad token."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    settings["unk_token"] = "<unk>"
    settings |= {"eos_token": "</s>"} if end else {}
    settings |= {"pad_token": "<pad>"} if pad else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def save_byte_pairs(folder: Path) -> Path:
    """Byte pairs, trained on the words of the kit: transformers has a class of its own for Qwen2."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "Qwen2Tokenizer"}
    settings |= {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def _decoder(folder: Path, family: str, suffix: str, more: dict[str, Any]) -> Path:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{family}Config")(**{**DECODER, **more})
    _save(folder, getattr(transformers, family + suffix), config)
    return save_tokenizer(folder)


def _save(folder: Path, kind: Any, config: Any) -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = kind(config)
    model.save_pretrained(folder)
