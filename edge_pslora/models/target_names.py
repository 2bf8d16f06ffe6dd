"""What `--target auto` chooses, by the names of layers alone: no torch, so that a file can be asked too."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

# What `auto` means for a transformer: query, value and both feed-forward products, under the names
# that the families give them. A packed query-key-value product is taken whole.
TRANSFORMER_NAMES = (
    # BERT, RoBERTa, MiniLM, ELECTRA, DeBERTa-v2; DeBERTa packs; DistilBERT; MPNet
    *(
        "query",
        "value",
        "query_proj",
        "value_proj",
        "in_proj",
        "q_lin",
        "v_lin",
        "attn.q",
        "attn.v",
    ),
    *("intermediate.dense", "output.dense", "lin1", "lin2"),
    # ViT, DeiT, AST, DINOv2, Swin, Llama, Qwen; Wav2Vec2; ModernBERT packs
    *("q_proj", "v_proj", "fc1", "fc2", "gate_proj", "up_proj", "down_proj"),
    *("intermediate_dense", "output_dense", "Wqkv", "mlp.Wi", "mlp.Wo"),
    # ConvNeXt has no attention; ALBERT; GPT-2 packs, and calls two products c_proj
    *("pwconv1", "pwconv2", "ffn", "ffn_output", "c_attn", "c_fc", "mlp.c_proj"),
)


def matches(name: str, pattern: str) -> bool:
    """Whether the dotted `name` is the pattern, ends in it, or fits it as a glob."""
    return name == pattern or name.endswith("." + pattern) or fnmatchcase(name, pattern)


def matched(names: Collection[str], pattern: str) -> set[str]:
    """Those of the names that a pattern means: a whole name is that layer alone, also where another
    one's name ends like it."""
    return {pattern} if pattern in names else {name for name in names if matches(name, pattern)}


def auto_names(linear: Sequence[str], packed: Sequence[str], layers: Sequence[str]) -> set[str]:
    """The layers that `auto` adapts.

    linear: names of all linear layers, transposed ones among them. packed: of attention layers with
    one weight for query, key and value. layers: linear, convolutions and
    packed attention, in the order of the model.
    """
    by_name = {
        name
        for name in linear
        if any(matches(name, end) for end in TRANSFORMER_NAMES)
        # BERT's names for the second feed-forward product and the attention's output end alike
        and not matches(name, "attention.output.dense")
    } | set(packed)
    if by_name:
        return by_name
    # elsewhere the upper two thirds: the first layers are the most general and the dearest to train
    return set(layers[-math.floor(len(layers) * 2 / 3) :]) if len(layers) > 1 else set(layers)
