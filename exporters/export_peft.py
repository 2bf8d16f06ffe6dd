"""A generation as one PEFT adapter for the base. The first is its own adapter; a later one, or one
that began with imported adapters, is made from merged - base, because its session's adapter was
trained on top of the merged past."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_pslora.errors import UsageError, WorkspaceError
from edge_pslora.exporters import export_files as files
from edge_pslora.exporters.lora_factors import (
    Array,
    LayerKind,
    LoraFactors,
    factors_from_matrices,
    transposes,
)
from edge_pslora.exporters.low_rank import truncate
from edge_pslora.exporters.model_card import ModelCard
from edge_pslora.exporters.peft_adapter import read_peft_adapter, write_peft_adapter
from edge_pslora.exporters.peft_format import AdapterConfig
from edge_pslora.workspace import layout
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.tensors import TensorFile, open_tensors
from edge_pslora.workspace.workspace import Workspace


def export_peft(
    opened: Workspace, chosen: Generation, staged: Path, rank: int
) -> Mapping[str, Any]:
    """Fill `staged` with the adapter and the head; gives max_relative_error and left_out."""
    files.write_head(chosen, staged)
    own = chosen.manifest.parent is None and not chosen.manifest.metrics.get("imported")
    if own:
        prefix = f"{layout.ADAPTER}/"
        for name in chosen.manifest.files:
            if name.startswith(prefix):
                files.copy_published(chosen, name, staged / name.removeprefix(prefix))
    opened.verify_base()
    kinds = _layer_kinds(opened, chosen)
    with (
        open_tensors(opened.base / layout.MODEL) as base,
        open_tensors(chosen.file(layout.MODEL)) as merged,
    ):
        names = {path: weight_name(path, kind, base) for path, kind in kinds.items()}
        left_out = _left_out(base, merged, set(names.values()), opened.header.source)
        if own:
            return {"max_relative_error": 0.0, "left_out": left_out}
        layers, error = {}, 0.0
        for path, kind in kinds.items():
            after = merged.read(weight_name(path, kind, merged), finite=True)
            before = base.read(names[path], finite=True)
            delta = after.astype(np.float32) - before.astype(np.float32)
            layers[path], lost = _factors(delta, kind, rank)
            error = max(error, lost)
    _write(opened, chosen, staged, layers, error)
    return {"max_relative_error": error, "left_out": left_out}


def _factors(delta: Array, kind: LayerKind, rank: int) -> tuple[LoraFactors, float]:
    matrix = delta.T if transposes(kind) else delta.reshape(len(delta), -1)
    low = truncate(matrix, rank)
    return factors_from_matrices(kind, low.A, low.B, 1.0, delta.shape), low.error


def _write(
    opened: Workspace,
    chosen: Generation,
    staged: Path,
    layers: Mapping[str, LoraFactors],
    error: float,
) -> None:
    rank = max(layer.rank for layer in layers.values())
    reference = str(opened.header.source.get("reference") or "") or None
    facts = {
        "generation": chosen.number,
        "largest rank": rank,
        "largest relative error of a layer": f"{error:.2e}",
    }
    card = ModelCard(
        title=f"Adapter of generation {chosen.number}: {chosen.manifest.task}",
        library="peft",
        base_model=reference,
        labels=chosen.labels,
        facts=facts,
    )
    # alpha = rank: scaling 1, the factors hold the whole update
    write_peft_adapter(
        staged,
        layers,
        AdapterConfig(rank, float(rank), base_model=reference),
        sidecar={"generation": chosen.number, "max_relative_error": error, "computed": "svd"},
        card=card,
    )


def _layer_kinds(opened: Workspace, chosen: Generation) -> dict[str, LayerKind]:
    """Every layer that this generation or one of its ancestors adapted."""
    kinds: dict[str, LayerKind] = {}
    generation: Generation | None = chosen
    while generation is not None:
        names = [n for n in generation.manifest.files if n.startswith(f"{layout.ADAPTER}/")]
        if names:
            generation.verify(names)
            adapter = read_peft_adapter(generation.path / layout.ADAPTER)
            kinds |= {path: layer.kind for path, layer in adapter.layers.items()}
        parent = generation.manifest.parent
        generation = None if parent is None else opened.generation(parent)
    if not kinds:
        raise UsageError(
            f"generation {chosen.number}",
            expected="an adapter in it or in one before it",
            found="none: only the head was fitted",
            remedy="export safetensors or onnx instead",
        )
    return dict(sorted(kinds.items()))


def weight_name(path: str, kind: LayerKind, base: TensorFile) -> str:
    """The tensor of a layer in the base's file, which may carry one prefix more or less."""
    name = f"{path}.in_proj_weight" if kind == "mha_in_proj" else f"{path}.weight"
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
) -> list[str]:
    """Tensors outside the adapted layers and the head that differ from the base."""
    head = str((source.get("options") or {}).get("head_module") or "")
    return [
        name
        for name in merged.names
        if name in base.names
        and name not in weights
        and not (head and name.startswith(f"{head}."))
        and merged.read(name).tobytes() != base.read(name).tobytes()
    ]
