"""What `--target auto` chooses, by the names of layers alone: no torch, so that a file can be asked too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

# What `auto` means for a transformer: query, value and both feed-forward products, under the names
# that the families give them.
TRANSFORMER_NAMES = (
    *("query", "value", "q_proj", "v_proj", "q_lin", "v_lin", "query_proj", "value_proj"),
    *("intermediate.dense", "output.dense", "lin1", "lin2", "fc1", "fc2", "up_proj", "down_proj"),
)


def matches(name: str, pattern: str) -> bool:
    """Whether the dotted `name` is the pattern, ends in it, or fits it as a glob."""
    return name == pattern or name.endswith("." + pattern) or fnmatchcase(name, pattern)


def auto_names(linear: Sequence[str], packed: Sequence[str], layers: Sequence[str]) -> set[str]:
    """The layers that `auto` adapts.

    linear: names of all Linear layers. packed: of attention layers with one weight for query, key
    and value. layers: Linear and convolutions, in the order of the model.
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
