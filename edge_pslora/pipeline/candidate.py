"""Writing a candidate generation into the staging folder: adapter, memory, merged model, ONNX."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_pslora.config import AdaptConfig
from edge_pslora.core.certificate import certify_signs
from edge_pslora.data.seen import Digests
from edge_pslora.data.types import Dataset
from edge_pslora.exporters.lora_factors import LoraFactors, factors_from_matrices
from edge_pslora.exporters.model_card import ModelCard, write_card
from edge_pslora.exporters.parity import Parity
from edge_pslora.exporters.peft_adapter import write_peft_adapter
from edge_pslora.exporters.peft_format import AdapterConfig
from edge_pslora.models.types import LoadedModel
from edge_pslora.pipeline.memory_files import merged_tensors, write_memory
from edge_pslora.pipeline.onnx_metadata import onnx_metadata
from edge_pslora.pipeline.onnx_writing import Exported, write_onnx
from edge_pslora.pipeline.proving import parity_figures, prove_export
from edge_pslora.pipeline.resources import peak_rss_bytes
from edge_pslora.tasks import TASKS
from edge_pslora.training.anchor import AnchorSet
from edge_pslora.training.classifier import with_head
from edge_pslora.training.session import SessionData, SessionResult
from edge_pslora.workspace import durable, layout
from edge_pslora.workspace.tensors import write_tensors
from edge_pslora.workspace.workspace import Workspace

REJECTED = "rejected.jsonl"


@dataclass(frozen=True)
class Candidate:
    """A finished session that may become generation `number`.

    anchors: those it will keep. seen: digests of all samples learned from. notes: what the user should
    hear of, one sentence each.
    imported: names of the adapters that count as the sessions before the first.
    """

    number: int
    task: str
    result: SessionResult
    anchors: AnchorSet | None
    seen: Digests
    data: SessionData
    config: AdaptConfig
    notes: tuple[str, ...] = ()
    imported: tuple[str, ...] = ()


def require_room(folder: Path, model_bytes: int, config: AdaptConfig) -> None:
    """Refuse before the work where a generation does not fit: merged model, ONNX file, what is remembered.

    Raises:
        EdgePsloraError: the file system of `folder` has less room.
    """
    budget = config.budget
    durable.require_free_space(folder, 3 * model_bytes + budget.history_bytes + budget.head_bytes)


def write_candidate(
    folder: Path, workspace: Workspace, model: LoadedModel, candidate: Candidate
) -> Exported:
    """Every file of a generation but the report, the card and the manifest; each durably.

    Raises:
        EdgePsloraError: a value that is not finite; GateRefusedError: an ONNX file that differs from
            torch.
    """
    result, config = candidate.result, candidate.config
    tensors = merged_tensors(workspace.base, model, result.memory)
    require_room(folder, sum(a.nbytes for a in tensors.values()), config)
    durable.make_folder(folder / layout.ADAPTER)
    base = model.source.reference or model.source.kind
    write_peft_adapter(
        folder / layout.ADAPTER,
        _factors(model, result),
        AdapterConfig(config.lora.rank, config.lora.alpha, config.lora.use_rslora, base),
        sidecar={
            "generation": candidate.number,
            "merge": config.merge,
            "base_digest": workspace.header.base_digest,
            "applies_to": "the merged weights of the parent generation; for the first, the base"
            + (" with the imported adapters" if candidate.imported else ""),
            "imported": list(candidate.imported),
        },
    )
    write_memory(folder, result.memory, candidate.anchors, config.budget, candidate.seen)
    write_tensors(folder / layout.MODEL, tensors, {"format": "pt"}, finite=True)
    head = result.memory.head
    classifier = with_head(model.backbone, head).eval()
    inputs = candidate.data.inputs

    def prove(path: Path, traced: bool) -> Parity:
        return prove_export(
            classifier,
            path,
            inputs,
            config.gate,
            TASKS[head.task_type],
            axes=model.dynamic_axes,
            unit=head.target_scale,
            traced=traced,
        )

    return write_onnx(
        folder / layout.ONNX,
        classifier,
        inputs.batch(np.arange(min(2, len(inputs)), dtype=np.int64)),
        model.dynamic_axes,
        onnx_metadata(workspace, model, candidate.number, config.to_dict(), head),
        workspace.current(),
        prove,
    )


def _factors(model: LoadedModel, result: SessionResult) -> dict[str, LoraFactors]:
    parameters = dict(model.backbone.model.named_parameters())
    return {
        name: factors_from_matrices(
            adapter.target.kind,
            adapter.A.detach().numpy(),
            adapter.B.detach().numpy(),
            adapter.scaling,
            tuple(parameters[adapter.target.weight_name].shape),
        )
        for name, adapter in result.adapters.items()
    }


def session_metrics(
    candidate: Candidate,
    dataset: Dataset,
    holdout: int,
    figures: dict[str, Any],
    exported: Exported,
) -> dict[str, Any]:
    """What the manifest and `--json` say of the session; JSON values only."""
    result = candidate.result
    head = result.memory.head
    signs = {name: certify_signs(layer) for name, layer in result.memory.history.items()}
    return {
        "task": candidate.task,
        "metric": TASKS[head.task_type].metric,
        "sessions": result.memory.sessions,
        "samples": len(candidate.data.targets),
        "holdout_samples": holdout,
        "anchor_samples": 0 if candidate.anchors is None else len(candidate.anchors),
        "rejected": len(dataset.rejected),
        "steps": result.log.steps,
        "resumed_at": result.log.resumed_at,
        "stop_reason": result.log.stop_reason,
        "skipped_steps": result.log.bad_steps,
        **figures,
        "peak_rss_bytes": peak_rss_bytes(),
        **parity_figures(exported.parity),
        "onnx_graph": exported.how,
        "merge_error": result.merge_error,
        "labels": list(head.labels),
        "head": head.kind,
        "head_ridge": head.ridge if head.kind == "analytic" else None,
        "zero_shot_accuracy": result.zero_shot_accuracy,
        "notes": [*dataset.notes, *candidate.notes, *result.log.notes],
        "certificate": {
            "largest_eps": max(layer.eps for layer in result.memory.history.values()),
            "proven_signs": _mean([s.entries for s in signs.values()]),
            "sign_agreement": _mean([s.agreement for s in signs.values()]),
        },
        "layers": [
            asdict(layer)
            | {
                "proven_signs": signs[layer.name].entries,
                "sign_agreement": signs[layer.name].agreement,
            }
            for layer in result.layers
        ],
    }


def write_rejected(folder: Path, dataset: Dataset) -> None:
    """rejected.jsonl: where and why, one line for each row that was set aside."""
    if dataset.rejected:
        lines = [json.dumps({"where": r.where, "reason": r.reason}) for r in dataset.rejected]
        durable.write_bytes(folder / REJECTED, ("\n".join(lines) + "\n").encode())


def write_generation_card(folder: Path, model: LoadedModel, metrics: dict[str, Any]) -> None:
    """README.md, the model card of the generation."""
    huggingface = model.source.kind == "huggingface"
    facts = {
        "task": metrics["task"],
        f"{metrics['metric']} on held-out samples": metrics["accuracy_after"],
        "kept of what was known (anchor samples)": metrics["retention"],
        "sessions so far": metrics["sessions"],
        "largest difference of ONNX and torch": metrics["onnx_max_abs_error"],
    }
    card = ModelCard(
        title=f"Generation {folder.name.lstrip('0')}: {metrics['task']}",
        library="transformers" if huggingface else "pytorch",
        base_model=model.source.reference or None,
        labels=metrics["labels"],
        facts={name: "none" if value is None else value for name, value in facts.items()},
    )
    write_card(folder, card)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
