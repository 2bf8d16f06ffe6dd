"""Which layers get an adapter: by name, glob or `auto`; tied and unsupported layers are found here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from edge_pslora.config import AdaptConfig
from edge_pslora.errors import ModelError
from edge_pslora.models.target_names import auto_names, matched
from edge_pslora.training.depth import upper_layers

TargetKind = Literal[
    "linear", "transposed_linear", "conv1d", "conv2d", "embedding", "mha_in_proj", "mha_out_proj"
]


TRANSPOSED: tuple[TargetKind, ...] = ("embedding", "transposed_linear")  # weight = matrix^T


@dataclass(frozen=True)
class Target:
    """One weight that an adapter updates.

    name: dotted path of the module. weight_name: name of the weight in the state dict. shape:
    (out, in) of the update D = s B A; a convolution's kernel is flattened into `in`, an embedding
    [num, dim] counts as the transposed matrix (dim, num), as PEFT stores it, and so does the
    weight [in, out] of transformers' Conv1D, kind `transposed_linear`.
    """

    name: str
    kind: TargetKind
    weight_name: str
    shape: tuple[int, int]


def as_matrix(weight: torch.Tensor, target: Target) -> torch.Tensor:
    """The weight of a target as the matrix [out, in] that its update is added to."""
    return weight.T if target.kind in TRANSPOSED else weight.reshape(target.shape)


def as_weight(matrix: torch.Tensor, target: Target, like: torch.Size) -> torch.Tensor:
    """The inverse of `as_matrix`: [out, in] in the shape of the weight."""
    return matrix.T.contiguous() if target.kind in TRANSPOSED else matrix.reshape(like)


def find_targets(model: nn.Module, patterns: Sequence[str]) -> tuple[Target, ...]:
    """The targets that the patterns name, in the order of the model's modules.

    A pattern is `auto`, a dotted name, the end of one (`query`), or a glob (`encoder.layer.*.query`).

    Raises:
        ModelError: a pattern matches nothing, or names a layer that cannot take an adapter.
    """
    tied = _tied_weights(model)
    candidates = {t.name: t for t in _candidates(model)}
    chosen: set[str] = set()
    for pattern in patterns:
        if pattern == "auto":
            chosen |= _auto([t for t in candidates.values() if t.weight_name not in tied])
            continue
        names = [name for name, _ in model.named_modules() if name]
        found = matched(names, pattern)
        usable = found & candidates.keys()
        if not usable:
            raise _no_match(model, pattern, found)
        for name in usable:
            partners = tied.get(candidates[name].weight_name)
            if partners:
                raise ModelError(
                    f"--target {pattern}",
                    expected="a weight of its own",
                    found=f"{candidates[name].weight_name} is tied to {', '.join(partners)}",
                    remedy="leave this layer out: an update would change both",
                )
        chosen |= usable
    if not chosen:
        raise _no_match(model, ",".join(patterns), set())
    return tuple(t for name, t in candidates.items() if name in chosen)


def adapted_targets(model: nn.Module, config: AdaptConfig) -> tuple[Target, ...]:
    """The targets that the settings name: those of the patterns, in the upper `adapt_depth` of the model.

    Raises:
        ModelError: see `find_targets`; or none of them lies there.
    """
    targets = find_targets(model, config.lora.target_modules)
    depth = config.engine.adapt_depth
    if depth == 1:
        return targets
    upper = upper_layers(
        model, [c.name for c in _candidates(model) if c.kind != "embedding"], depth
    )
    kept = tuple(target for target in targets if target.name in upper)
    if not kept:
        raise ModelError(
            f"--adapt-depth {depth}",
            expected="a target in the upper layers",
            found=f"none of {len(targets)}, the uppermost is {targets[-1].name}",
            remedy="raise --adapt-depth, or name upper layers with --target",
        )
    return kept


def _candidates(model: nn.Module) -> list[Target]:
    found: list[Target] = []
    modules = dict(model.named_modules())
    inside_attention = {
        f"{name}.out_proj" if name else "out_proj"
        for name, module in modules.items()
        if isinstance(module, nn.MultiheadAttention)
    }
    for name, module in modules.items():
        weight_name = f"{name}.weight" if name else "weight"
        if not isinstance(module, nn.MultiheadAttention) and not _owns_weight(module):
            continue
        if isinstance(module, nn.MultiheadAttention):
            if module.in_proj_weight is not None:
                out, size = module.in_proj_weight.shape
                found.append(Target(name, "mha_in_proj", f"{name}.in_proj_weight", (out, size)))
        elif isinstance(module, nn.Linear):
            kind: TargetKind = "mha_out_proj" if name in inside_attention else "linear"
            found.append(Target(name, kind, weight_name, (module.out_features, module.in_features)))
        elif is_transposed_linear(module):
            size, out = module.get_parameter("weight").shape
            found.append(Target(name, "transposed_linear", weight_name, (out, size)))
        elif isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups == 1:
            shape = (module.out_channels, math.prod(module.weight.shape[1:]))
            kind = "conv1d" if isinstance(module, nn.Conv1d) else "conv2d"
            found.append(Target(name, kind, weight_name, shape))
        elif isinstance(module, nn.Embedding) and module.max_norm is None:
            found.append(
                Target(
                    name,
                    "embedding",
                    weight_name,
                    (module.embedding_dim, module.num_embeddings),
                )
            )
    return found


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D (GPT-2), y = x W + b with W [in, out]; imports nothing of it."""
    kind = type(module)
    return (
        kind.__name__ == "Conv1D"
        and kind.__module__.startswith("transformers.")
        and isinstance(weight := getattr(module, "weight", None), nn.Parameter)
        and weight.dim() == 2
        and weight.shape[1] == getattr(module, "nf", None)
    )


def _owns_weight(module: nn.Module) -> bool:
    """Whether its weight is a parameter of its own, not computed from others (weight norm)."""
    return module._parameters.get("weight") is not None


def _auto(candidates: Sequence[Target]) -> set[str]:
    return auto_names(
        linear=[t.name for t in candidates if t.kind in ("linear", "transposed_linear")],
        packed=[t.name for t in candidates if t.kind == "mha_in_proj"],
        layers=[t.name for t in candidates if t.kind not in ("embedding", "mha_out_proj")],
    )


def _tied_weights(model: nn.Module) -> dict[str, list[str]]:
    """Weight name -> the other names that share its storage."""
    by_storage: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_storage.setdefault(parameter.untyped_storage().data_ptr(), []).append(name)
    return {
        name: [other for other in names if other != name]
        for names in by_storage.values()
        if len(names) > 1
        for name in names
    }


def _described(module: nn.Module) -> str:
    name = type(module).__name__
    if isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups > 1:
        return f"{name} with {module.groups} groups"
    computed = not _owns_weight(module) and isinstance(
        getattr(module, "weight", None), torch.Tensor
    )
    return f"{name} whose weight is computed from others" if computed else name


def _no_match(model: nn.Module, pattern: str, matched: set[str]) -> ModelError:
    if matched:
        name = min(matched)
        module = model.get_submodule(name)
        found = f"{name} is a {_described(module)}"
    else:
        names = [t.name for t in _candidates(model)]
        found = f"no such layer; the model has {', '.join(names[:6]) or 'none'}" + (
            f" and {len(names) - 6} more" if len(names) > 6 else ""
        )
    return ModelError(
        f"--target {pattern}",
        expected="a Linear, Conv1d or Conv2d with one group, Embedding or MultiheadAttention layer",
        found=found,
        remedy="name another target",
    )
