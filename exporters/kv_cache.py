"""What an ONNX file with a key-value cache is called and shaped like: names as transformers and optimum
write them, so that their generators run it. No torch: a device reads it.

    input_ids        [batch_size, sequence_length]            the new tokens
    attention_mask   [batch_size, past_sequence_length + sequence_length]
    position_ids     [batch_size, sequence_length]            where the model takes them
    past_key_values.N.key, .value   [batch_size, heads, past_sequence_length, head_dim]
    logits           [batch_size, sequence_length, tokens]
    present.N.key, .value   [batch_size, heads, past_sequence_length + sequence_length, head_dim]

One file is for the first run, whose past has length 0, and for all that follow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from edge_pslora.errors import ModelError

CACHE_KEY = "pslora.kv_cache"
IDS, MASK, POSITIONS, LOGITS = "input_ids", "attention_mask", "position_ids", "logits"
BATCH, SEQUENCE, PAST = "batch_size", "sequence_length", "past_sequence_length"
TOTAL = f"{PAST} + {SEQUENCE}"
# name -> its free axes, by position
AXES: Mapping[str, Mapping[int, str]] = {
    IDS: {0: BATCH, 1: SEQUENCE},
    MASK: {0: BATCH, 1: TOTAL},
    POSITIONS: {0: BATCH, 1: SEQUENCE},
    LOGITS: {0: BATCH, 1: SEQUENCE},
    "past_key_values": {0: BATCH, 2: PAST},
    "present": {0: BATCH, 2: TOTAL},
}


@dataclass(frozen=True)
class KvCache:
    """Two float32 arrays [batch, heads, past, head_dim] for each layer: its keys and its values.

    heads: of keys and values; fewer than of queries in a model with grouped queries.
    """

    layers: int
    heads: int
    head_dim: int

    @property
    def past_names(self) -> tuple[str, ...]:
        return self._names("past_key_values")

    @property
    def present_names(self) -> tuple[str, ...]:
        return self._names("present")

    def _names(self, prefix: str) -> tuple[str, ...]:
        kinds = ("key", "value")
        return tuple(f"{prefix}.{layer}.{kind}" for layer in range(self.layers) for kind in kinds)

    def to_json(self) -> str:
        """The value of `pslora.kv_cache`."""
        return json.dumps(asdict(self), sort_keys=True)


def axes_of(name: str) -> Mapping[int, str]:
    """The free axes of an input or output, by position."""
    return AXES[name.split(".")[0]]


def cache_of(metadata: Mapping[str, str], where: str) -> KvCache:
    """The cache that a file's metadata tell of.

    Raises:
        ModelError: they tell of none, or what they say is no such thing.
    """
    try:
        found = json.loads(metadata[CACHE_KEY])
        cache = KvCache(**{name: int(value) for name, value in found.items()})
    except (KeyError, ValueError, TypeError, AttributeError) as problem:
        raise ModelError(
            where,
            expected=f"an ONNX file with {CACHE_KEY} in its metadata",
            found=metadata.get(CACHE_KEY, "none"),
            remedy="write it with: edge-pslora export --format onnx --kv-cache",
        ) from problem
    return cache
