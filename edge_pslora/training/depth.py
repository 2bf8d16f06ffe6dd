"""What the upper part of a model is: by its repeated blocks, whatever they are called."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from torch import nn


def upper_layers(model: nn.Module, layers: Sequence[str], depth: float) -> set[str]:
    """Those of the layers, given in the model's order, that lie in its upper part.

    depth: a share in (0, 1] of the model's blocks, rounded up. A block is a child of the innermost list
    of like modules around a layer (BERT's encoder.layer.3); a layer outside of all counts as one.
    """
    blocks = dict.fromkeys(_block(model, name) for name in layers)
    upper = set(list(blocks)[-math.ceil(depth * len(blocks)) :])
    return {name for name in layers if _block(model, name) in upper}


def _block(model: nn.Module, name: str) -> str:
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        parent = model.get_submodule(".".join(parts[: end - 1])) if end > 1 else model
        if _is_list(parent):
            return ".".join(parts[:end])
    return name


def _is_list(module: nn.Module) -> bool:
    """Whether its children are, for the most part, modules of one class that have modules of their own."""
    if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) < 2:
        return False
    kinds = Counter(type(child) for child in module if any(True for _ in child.children()))
    return bool(kinds) and kinds.most_common(1)[0][1] * 2 > len(module)
