"""A generation as one PEFT adapter for the base: its own, or one computed from merged - base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_pslora.exporters import export_files as files
from edge_pslora.exporters.generation_update import GenerationUpdate, generation_update
from edge_pslora.exporters.model_card import ModelCard
from edge_pslora.exporters.peft_adapter import write_peft_adapter
from edge_pslora.exporters.peft_format import AdapterConfig
from edge_pslora.workspace import layout
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.workspace import Workspace


def export_peft(
    opened: Workspace, chosen: Generation, staged: Path, rank: int
) -> Mapping[str, Any]:
    """Fill `staged` with the adapter and the head; gives max_relative_error and left_out."""
    files.write_head(chosen, staged)
    update = generation_update(opened, chosen, rank)
    if update.exact:
        prefix = f"{layout.ADAPTER}/"
        for name in chosen.manifest.files:
            if name.startswith(prefix):
                files.copy_published(chosen, name, staged / name.removeprefix(prefix))
    else:
        _write(opened, chosen, staged, update)
    return {"max_relative_error": update.error, "left_out": list(update.left_out)}


def _write(opened: Workspace, chosen: Generation, staged: Path, update: GenerationUpdate) -> None:
    reference = str(opened.header.source.get("reference") or "") or None
    facts = {
        "generation": chosen.number,
        "largest rank": update.rank,
        "largest relative error of a layer": f"{update.error:.2e}",
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
        update.layers,
        AdapterConfig(update.rank, float(update.rank), base_model=reference),
        sidecar={
            "generation": chosen.number,
            "max_relative_error": update.error,
            "computed": "svd",
        },
        card=card,
    )
