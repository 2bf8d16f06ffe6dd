"""Layers that a safetensors file speaks of, by names and shapes: no torch, no code of the model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from edge_pslora.errors import ModelError
from edge_pslora.inspection.facts import LayerFacts
from edge_pslora.models.target_names import auto_names, matched
from edge_pslora.workspace.tensor_header import TensorSpec

# What an Embedding is called where its weight could as well be a Linear's.
_EMBEDDING = re.compile(r".*embeddings?(_\w+)?|wte|wpe|embed_\w+|shared|.*_embeddings?_.*")
# Siblings that a model makes before, or after, what sorts by name and number.
_FIRST = frozenset(
    (
        *("embeddings", "embedder", "conv_stem", "first_conv", "shortcut", "downsampling_layer"),
        *("expand_1x1", "dwconv"),
    )
)
_LAST = frozenset(("conv_1x1", "reduce_1x1", "pooler", "classifier", "head", "score"))
_LINEAR = ("linear", "transposed_linear")
# Conv1D of the GPT-2 family: the weight of a linear layer, stored as [in, out].
_TRANSPOSED = frozenset(("c_attn", "c_proj", "c_fc", "q_attn"))


def file_layers(specs: Mapping[str, TensorSpec], *, channels: int = 3) -> list[LayerFacts]:
    """Layers with a weight that an adapter may update, in the order in which a model makes them.

    channels: of the model's input pictures; a kernel over fewer channels is a grouped convolution.
    """
    found = [
        layer for name, spec in specs.items() if (layer := _layer(name, spec, specs, channels))
    ]
    return sorted(found, key=lambda layer: _position(layer.name))


def choose(layers: Sequence[LayerFacts], patterns: Sequence[str]) -> tuple[LayerFacts, ...]:
    """The layers that --target names; the rules are those of `training.targets.find_targets`.

    Raises:
        ModelError: a pattern names none of them.
    """
    chosen: set[str] = set()
    names = [layer.name for layer in layers]
    for pattern in patterns:
        found = _auto(layers) if pattern == "auto" else matched(names, pattern)
        if not found:
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            raise ModelError(
                f"--target {pattern}",
                expected="a Linear, Conv1d or Conv2d with one group, Embedding or MultiheadAttention layer",
                found=f"no such layer; the file has {', '.join(names[:6]) or 'none'}{more}",
                remedy="name another target",
            )
        chosen |= found
    return tuple(layer for layer in layers if layer.name in chosen)


def by_transformer_names(layers: Sequence[LayerFacts]) -> bool:
    """Whether `auto` goes by names that mean the same in every family, whatever the order is."""
    return bool(auto_names(_of(layers, *_LINEAR), _of(layers, "mha_in_proj"), ()))


def _auto(layers: Sequence[LayerFacts]) -> set[str]:
    return auto_names(
        linear=_of(layers, *_LINEAR),
        packed=_of(layers, "mha_in_proj"),
        layers=_of(layers, *_LINEAR, "conv1d", "conv2d"),
    )


def _of(layers: Sequence[LayerFacts], *kinds: str) -> list[str]:
    return [layer.name for layer in layers if layer.kind in kinds]


def _layer(
    name: str, spec: TensorSpec, specs: Mapping[str, TensorSpec], channels: int
) -> LayerFacts | None:
    module, _, part = name.rpartition(".")
    shape, own = spec.shape, module.rpartition(".")[2]
    if part == "in_proj_weight" and len(shape) == 2:
        return LayerFacts(module, "mha_in_proj", name, (shape[0], shape[1]))
    if part != "weight" or not spec.dtype.startswith(("F", "BF")):
        return None
    if len(shape) == 2 and _EMBEDDING.fullmatch(own):
        return LayerFacts(module, "embedding", name, (shape[1], shape[0]))
    if len(shape) == 2 and own in _TRANSPOSED:
        return LayerFacts(module, "transposed_linear", name, (shape[1], shape[0]))
    if len(shape) == 2:
        packed = f"{module.rpartition('.')[0]}.in_proj_weight" in specs and own == "out_proj"
        return LayerFacts(module, "mha_out_proj" if packed else "linear", name, shape[:2])
    # one channel a kernel: depthwise, unless the pictures are grey and this is their first layer
    grey = channels == 1 and not _FIRST.isdisjoint(module.split("."))
    if len(shape) in (3, 4) and (shape[1] > 1 or grey):
        kind = "conv1d" if len(shape) == 3 else "conv2d"
        return LayerFacts(module, kind, name, (shape[0], math.prod(shape[1:])))
    return None


def _position(name: str) -> list[tuple[int, list[tuple[str, int]]]]:
    """A sort key: numbers by value, and the siblings of _FIRST and _LAST where they belong."""
    key = []
    for word in name.split("."):
        rank = 0 if word in _FIRST else 2 if word in _LAST else 1
        parts = re.findall(r"(\D*)(\d*)", word)
        key.append((rank, [(text, int(digits or 0)) for text, digits in parts]))
    return key
