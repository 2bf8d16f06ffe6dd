"""`--format ort-adapter`: one model.onnx and an adapter for each generation, run before they appear."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_pslora.config import GateConfig
from edge_pslora.errors import UsageError
from edge_pslora.exporters import export_files as files
from edge_pslora.exporters.adapter_file import (
    AdapterFacts,
    adapter_name,
    open_adapter,
    write_adapter,
)
from edge_pslora.exporters.export import ExportJob, Facts
from edge_pslora.exporters.generation_update import GenerationUpdate, generation_update
from edge_pslora.exporters.lora_factors import Array
from edge_pslora.exporters.ort_adapter import (
    AdapterPlan,
    adapter_parameters,
    plan_adapters,
    write_adapter_model,
)
from edge_pslora.exporters.run import OnnxRunner, open_onnx
from edge_pslora.models.types import BaseHead
from edge_pslora.pipeline.adapter_proof import (
    against_torch,
    cost_of_cutting,
    require_small,
)
from edge_pslora.pipeline.memory_files import load_memory, load_merged, open_base
from edge_pslora.pipeline.proving import NOT_WRITTEN, require_equal
from edge_pslora.pipeline.reopening import Reopened
from edge_pslora.tasks import TASKS
from edge_pslora.training.classifier import Classifier, linear_head, with_head
from edge_pslora.training.head import Head
from edge_pslora.workspace import layout
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.tensors import open_tensors


@dataclass(frozen=True)
class _Part:
    """One generation of the export."""

    generation: Generation
    update: GenerationUpdate
    head: Head


def write_ort_adapters(job: ExportJob, reopened: Reopened) -> Facts:
    """Fill the folder; gives "adapters", one object for each generation, oldest first.

    Raises:
        GateRefusedError: a file does not compute what torch computes, or cut factors cost too much.
    """
    parts = [
        _Part(g, generation_update(job.opened, g, job.options.max_rank), load_memory(g).head)
        for g in _generations(job)
    ]
    _require_same_features(parts)
    base_head = None if parts[-1].head.normalize else reopened.model.base_head
    plan = plan_adapters(
        [part.update for part in parts],
        {file: f"backbone.model.{name}" for name, file in reopened.model.file_names.items()},
        _default_head(parts[-1].head, base_head),
    )
    job.chosen.verify([n for n in (layout.ONNX, layout.ONNX_DATA) if job.chosen.has(n)])
    path = job.staged / layout.ONNX
    write_adapter_model(
        job.chosen.path / layout.ONNX,
        path,
        plan,
        _arrays(job.opened.base / layout.MODEL, {*plan.layers.values(), *plan.whole}),
        () if base_head is None else base_head.labels,
    )
    runner = open_onnx(path, threads=torch.get_num_threads())
    _prove_base(reopened, runner, base_head)
    adapters = [_write_and_prove(job, reopened, plan, part, runner) for part in parts]
    files.copy_side_files(job.opened, job.chosen, job.staged)
    return {
        "adapters": adapters,
        "notes": [*map(_note, adapters), _base_note(parts[-1], base_head)],
    }


def _generations(job: ExportJob) -> list[Generation]:
    """The chosen one and those published before it, oldest first."""
    numbers = [n for n in job.opened.generations() if n <= job.chosen.number]
    return [
        job.chosen if number == job.chosen.number else job.opened.generation(number)
        for number in numbers[-job.options.generations :]
    ]


def _require_same_features(parts: Sequence[_Part]) -> None:
    if len({part.head.normalize for part in parts}) > 1:
        raise UsageError(
            "--generations",
            expected="generations whose heads read the same features",
            found="a label-text head and another kind",
            remedy="export them one by one",
        )


def _default_head(head: Head, base: BaseHead | None) -> tuple[Array, Array] | None:
    """Weight [C, d] and bias [C] without an adapter: the base's own, else of no class."""
    if not TASKS[head.task_type].has_head:
        return None
    if base is not None:
        return base.weight.numpy(), base.bias.numpy()
    return np.zeros((0, head.weight.shape[1]), np.float32), np.zeros(0, np.float32)


def _arrays(path: Path, names: Collection[str]) -> dict[str, Array]:
    with open_tensors(path) as file:
        return {name: file.read(name, finite=True).astype(np.float32) for name in sorted(names)}


def _prove_base(reopened: Reopened, runner: OnnxRunner, base_head: BaseHead | None) -> None:
    """The file without an adapter is the base."""
    model, head = reopened.model, reopened.memory.head
    if base_head is None and TASKS[head.task_type].has_head:
        # no columns to compare: it runs, and each adapter's proof covers the weights of the base
        runner.run({name: tensor.numpy() for name, tensor in reopened.example().items()})
        return
    with open_base(reopened.workspace.base, model) as read, torch.no_grad():
        state = model.backbone.model.state_dict()
        for name in model.file_names:
            state[name].copy_(read(name))
    classifier = (
        with_head(model.backbone, head)
        if base_head is None
        else Classifier(model.backbone, linear_head(base_head.weight, base_head.bias))
    ).eval()
    parity = against_torch(classifier, runner, reopened.held.inputs, head)
    require_equal(parity, runner.path.name, GateConfig(), head.target_scale, NOT_WRITTEN)


def _write_and_prove(
    job: ExportJob, reopened: Reopened, plan: AdapterPlan, part: _Part, runner: OnnxRunner
) -> dict[str, Any]:
    generation, update, head = part.generation, part.update, part.head
    path = job.staged / adapter_name(generation.number)
    own = (head.weight.numpy(), head.bias.numpy()) if plan.head is not None else None
    whole = _arrays(generation.file(layout.MODEL), plan.whole)
    facts = AdapterFacts(
        generation.number,
        job.opened.header.base_digest,
        head.task_type,
        head.labels,
        update.exact,
        update.error,
    )
    write_adapter(path, adapter_parameters(plan, update, whole, own), facts)
    adapted = runner.using(open_adapter(path))
    load_merged(reopened.model, generation)
    classifier = with_head(reopened.model.backbone, head).eval()
    parity = against_torch(classifier, adapted, reopened.held.inputs, head)
    found = {
        "file": path.name,
        "bytes": path.stat().st_size,
        "generation": generation.number,
        "rank": update.rank,
        "exact": update.exact,
        "max_relative_error": update.error,
        "onnx_max_abs_error": parity.max_abs_error,
        "onnx_agreement": parity.agreement,
    }
    if update.exact:
        require_equal(parity, path.name, GateConfig(), head.target_scale, NOT_WRITTEN)
        return found
    cost = cost_of_cutting(generation, adapted, reopened.held, head)
    require_small(cost, path, job.options.max_drop)
    return found | {
        "samples": cost.samples,
        "agreement": cost.agreement,
        "held_max_abs_error": cost.max_abs_error,
        "accuracy": cost.accuracy,
        "accuracy_merged": cost.merged,
    }


def _note(adapter: dict[str, Any]) -> str:
    start = f"{adapter['file']}: {adapter['bytes']} bytes, "
    if adapter["exact"]:
        return (
            f"{start}as trained; differs from torch by {adapter['onnx_max_abs_error']:.1e} at most"
        )
    return (
        f"{start}rank {adapter['rank']} at most, a layer loses {adapter['max_relative_error']:.1e} of its "
        f"update at most; {100 * adapter['agreement']:.1f} % of {adapter['samples']} samples are answered "
        f"as by the merged model, {adapter['accuracy']:.3f} right against {adapter['accuracy_merged']:.3f}"
    )


def _base_note(part: _Part, base_head: BaseHead | None) -> str:
    if base_head is None and TASKS[part.head.task_type].has_head:
        return "without an adapter model.onnx gives no columns: the base has no classifier"
    return "without an adapter model.onnx is the base model"
