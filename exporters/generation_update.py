"""What a generation changed in the base: low-rank factors of every adapted layer, and the rest. No torch.

The first generation is its own adapter; a later one, or one that began with imported adapters, is made
from merged - base, because its session's adapter was trained on top of the merged past.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_pslora.errors import UsageError, WorkspaceError
from edge_pslora.exporters.lora_factors import (
    Array,
    LayerKind,
    LoraFactors,
    factors_from_matrices,
    transposes,
)
from edge_pslora.exporters.low_rank import truncate
from edge_pslora.exporters.peft_adapter import read_peft_adapter
from edge_pslora.workspace import layout
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.tensors import TensorFile, open_tensors
from edge_pslora.workspace.workspace import Workspace


@dataclass(frozen=True)
class GenerationUpdate:
    """The generation's weights as the base's plus the updates of `layers`.

    layers: by module path. weights: module path -> name of its tensor in the base's file.
    error: the largest ||D - B A|| / ||D|| of a layer, D = merged - base. exact: the factors are those that
    were trained, error 0. left_out: tensors outside these layers and the head that differ from the base
    (norms), by their names in the base's file.
    """

    layers: Mapping[str, LoraFactors]
    weights: Mapping[str, str]
    error: float
    exact: bool
    left_out: tuple[str, ...]

    @property
    def rank(self) -> int:
        """The largest of a layer."""
        return max(layer.rank for layer in self.layers.values())


def is_own_adapter(chosen: Generation) -> bool:
    """Whether the adapter of its session is all that lies between the base and the generation."""
    return chosen.manifest.parent is None and not chosen.manifest.metrics.get("imported")


def generation_update(opened: Workspace, chosen: Generation, rank: int) -> GenerationUpdate:
    """Read or compute the factors, the latter with at most `rank` rows a layer.

    Raises:
        UsageError: neither the generation nor one before it has an adapter.
        WorkspaceError: a file is not what was published.
    """
    opened.verify_base()
    adapted = _adapted_layers(opened, chosen)
    kinds = {path: layer.kind for path, layer in adapted.items()}
    exact = is_own_adapter(chosen)
    with (
        open_tensors(opened.base / layout.MODEL) as base,
        open_tensors(chosen.file(layout.MODEL)) as merged,
    ):
        stored = stored_names(opened)
        weights = {path: weight_name(path, kind, stored, base) for path, kind in kinds.items()}
        left_out = _left_out(base, merged, set(weights.values()), opened.header.source)
        if exact:
            return GenerationUpdate(adapted, weights, 0.0, True, left_out)
        layers, error = {}, 0.0
        for path, kind in kinds.items():
            after = merged.read(weight_name(path, kind, stored, merged), finite=True)
            before = base.read(weights[path], finite=True)
            delta = after.astype(np.float32) - before.astype(np.float32)
            layers[path], lost = _factors(delta, kind, rank)
            error = max(error, lost)
    return GenerationUpdate(layers, weights, error, False, left_out)


def _factors(delta: Array, kind: LayerKind, rank: int) -> tuple[LoraFactors, float]:
    matrix = delta.T if transposes(kind) else delta.reshape(len(delta), -1)
    low = truncate(matrix, rank)
    return factors_from_matrices(kind, low.A, low.B, 1.0, delta.shape), low.error


def _adapted_layers(opened: Workspace, chosen: Generation) -> dict[str, LoraFactors]:
    """Every layer that this generation or one of its ancestors adapted, with the newest factors."""
    layers: dict[str, LoraFactors] = {}
    generation: Generation | None = chosen
    while generation is not None:
        names = [n for n in generation.manifest.files if n.startswith(f"{layout.ADAPTER}/")]
        if names:
            generation.verify(names)
            adapter = read_peft_adapter(generation.path / layout.ADAPTER)
            layers = {**adapter.layers, **layers}
        parent = generation.manifest.parent
        generation = None if parent is None else opened.generation(parent)
    if not layers:
        raise UsageError(
            f"generation {chosen.number}",
            expected="an adapter in it or in one before it",
            found="none: only the head was fitted",
            remedy="export safetensors or onnx instead",
        )
    return dict(sorted(layers.items()))


def stored_names(opened: Workspace) -> Mapping[str, str]:
    """Name inside the model -> name in the file, where they differ by more than a prefix."""
    return (opened.header.source.get("options") or {}).get("file_names") or {}


def weight_name(path: str, kind: LayerKind, stored: Mapping[str, str], base: TensorFile) -> str:
    """The tensor of a layer in the base's file.

    stored: name inside the model -> name in the file, where the workspace knows (transformers renames
    layers of some families when it loads them); else the file may carry one prefix more or less.
    """
    name = f"{path}.in_proj_weight" if kind == "mha_in_proj" else f"{path}.weight"
    name = stored.get(name, name)
    if name in base.names:
        return name
    parts = name.split(".")
    shorter = {".".join(parts[count:]) for count in range(1, len(parts) - 1)}
    fits = [n for n in base.names if n.endswith(f".{name}") or n in shorter]
    if len(fits) != 1:
        raise WorkspaceError(
            str(base.path),
            expected=f"one tensor for {name}",
            found=", ".join(fits[:3]) or "none",
            remedy="export safetensors instead",
        )
    return fits[0]


def _left_out(
    base: TensorFile, merged: TensorFile, weights: set[str], source: Mapping[str, Any]
) -> tuple[str, ...]:
    """Tensors outside the adapted layers and the head that differ from the base."""
    head = str((source.get("options") or {}).get("head_module") or "")
    return tuple(
        name
        for name in merged.names
        if name in base.names
        and name not in weights
        and not (head and name.startswith(f"{head}."))
        and _differs(merged.read(name), base.read(name))
    )


def _differs(merged: Array, base: Array) -> bool:
    # a base in half precision is raised to float32 when it is loaded
    return merged.tobytes() != base.astype(merged.dtype).tobytes()
