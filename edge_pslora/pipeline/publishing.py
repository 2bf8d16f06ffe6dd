"""The last step of a session: report, card and manifest, then promotion or refusal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_pslora.config import GateConfig
from edge_pslora.core.gate import GateDecision
from edge_pslora.data.types import Dataset
from edge_pslora.errors import WorkspaceError
from edge_pslora.models.types import LoadedModel
from edge_pslora.pages.words import METRIC_NAMES
from edge_pslora.pipeline.candidate import Candidate, write_generation_card, write_rejected
from edge_pslora.pipeline.result import AdaptResult
from edge_pslora.report import (
    MAX_SESSIONS,
    CheckFacts,
    FileFacts,
    LayerFacts,
    LossPoint,
    ReportContext,
    SessionFacts,
    render_report,
)
from edge_pslora.workspace import durable, layout, refusals
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.manifest import Manifest, describe_files
from edge_pslora.workspace.staging import Staged
from edge_pslora.workspace.workspace import Workspace


def finish(
    workspace: Workspace,
    model: LoadedModel,
    staged: Staged,
    candidate: Candidate,
    dataset: Dataset,
    decision: GateDecision,
    metrics: dict[str, Any],
    created: str,
) -> AdaptResult:
    """Publishes the candidate, or puts it aside when the gate refused."""
    parent = workspace.current()
    history = staged.folder / layout.HISTORY
    metrics = metrics | {
        "history_bytes": history.stat().st_size,
        "reason": _reason(decision, metrics),
    }
    if before := refusals.read(staged.scratch):
        metrics["refused_before"] = before
    write_rejected(staged.folder, dataset)
    write_generation_card(staged.folder, model, metrics)
    context = _context(workspace, staged, candidate, dataset, decision, metrics, created, parent)
    durable.write_bytes(staged.folder / layout.REPORT, render_report(context).encode())
    if not decision.promote:
        number = 0 if parent is None else parent.number
        record = refusals.record_of(
            metrics,
            task=candidate.task,
            created=created,
            parent=number or None,
            reason=metrics["reason"],
        )
        folder = workspace.refuse(staged.folder, record)
        return AdaptResult(number, False, metrics["reason"], folder, metrics)
    manifest = Manifest(
        number=staged.number,
        parent=None if parent is None else parent.number,
        task=candidate.task,
        created=created,
        data_digest=dataset.digest,
        base_digest=workspace.header.base_digest,
        labels=candidate.result.memory.head.labels,
        config=candidate.config.to_dict(),
        metrics=metrics,
        counter=staged.number,
    )
    return result_of(workspace.publish(staged.folder, manifest))


def result_of(generation: Generation) -> AdaptResult:
    """The answer for a generation that is published (also when a killed run had got that far)."""
    metrics = dict(generation.manifest.metrics)
    return AdaptResult(generation.number, True, str(metrics["reason"]), generation.path, metrics)


def _reason(decision: GateDecision, metrics: dict[str, Any]) -> str:
    found = "; ".join(decision.reasons)
    if found:
        return f"{'forced although ' if decision.promote else ''}{found}"
    if metrics["accuracy_before"] is None:
        figures = decision.figures
        above = figures.floor is None or figures.holdout_after > figures.floor
        compared = "better than" if above else "not significantly below"
        return f"first generation: {compared} a constant answer, and the export equals torch"
    return "not significantly worse on holdout and anchor set, and the export equals torch"


def _context(
    workspace: Workspace,
    staged: Staged,
    candidate: Candidate,
    dataset: Dataset,
    decision: GateDecision,
    metrics: dict[str, Any],
    created: str,
    parent: Generation | None,
) -> ReportContext:
    log = candidate.result.log
    config = candidate.config
    return ReportContext(
        generation=staged.number,
        promoted=decision.promote,
        reason=metrics["reason"],
        task=candidate.task,
        model=str(workspace.header.source.get("reference") or workspace.header.source["kind"]),
        created=created,
        parent=None if parent is None else parent.number,
        metric=METRIC_NAMES[metrics["metric"]],
        accuracy_before=metrics["accuracy_before"],
        accuracy_after=metrics["accuracy_after"],
        anchor_before=metrics["anchor_before"],
        anchor_after=metrics["anchor_after"],
        retention=metrics["retention"],
        samples=metrics["samples"],
        holdout_samples=metrics["holdout_samples"],
        anchor_samples=metrics["anchor_samples"],
        steps=metrics["steps"],
        wall_seconds=metrics["wall_seconds"],
        peak_rss_bytes=metrics["peak_rss_bytes"],
        history_bytes=metrics["history_bytes"],
        history_budget_bytes=config.budget.history_bytes,
        onnx_max_abs_error=metrics["onnx_max_abs_error"],
        labels=metrics["labels"],
        checks=_checks(decision, metrics, config.gate),
        sessions=[
            *_past(workspace, parent),
            _facts(staged.number, candidate.task, metrics),
        ],
        layers=[
            LayerFacts(
                name=layer["name"],
                rank=layer["rank"],
                relative_update=layer["relative_norm"],
                refused_share=layer["kept_past"] if metrics["sessions"] > 1 else None,
                certificate=layer["eps"],
                proven_share=layer["proven_signs"],
                proven_weight=layer["sign_agreement"],
            )
            for layer in metrics["layers"]
        ],
        losses=[
            LossPoint(step + 1, task, penalty)
            for step, (task, penalty) in enumerate(zip(log.task_loss, log.penalty, strict=True))
        ],
        stages=list(metrics["seconds"].items()),
        files=[
            FileFacts(name, entry.bytes, entry.sha256)
            for name, entry in describe_files(staged.folder).items()
        ],
        rejected=[(row.where, row.reason) for row in dataset.rejected],
        settings=_flat(config.to_dict()),
        notes=metrics["notes"],
    )


def _checks(
    decision: GateDecision, metrics: dict[str, Any], limits: GateConfig
) -> list[CheckFacts]:
    figures = decision.figures
    holdout = f"{metrics['accuracy_after']:.3f} after"
    if metrics["accuracy_before"] is not None:
        holdout += f", {metrics['accuracy_before']:.3f} before (p = {figures.holdout_p:.2g})"
    checks = [
        CheckFacts("all values finite", True, "every tensor of every file"),
        CheckFacts("merged = adapters", True, f"{metrics['merge_error']:.1e} relative"),
        CheckFacts(
            "ONNX = torch",
            True,
            _parity(metrics, limits),
        ),
        CheckFacts("holdout no worse", not any("holdout" in r for r in decision.reasons), holdout),
    ]
    if metrics["anchor_before"] is not None:
        kept = f"{metrics['anchor_after']:.3f} after, {metrics['anchor_before']:.3f} before"
        passed = not any("anchor" in r for r in decision.reasons)
        checks.append(CheckFacts("anchor set kept", passed, f"{kept} (p = {figures.anchor_p:.2g})"))
    return checks


def _parity(metrics: Mapping[str, Any], limits: GateConfig) -> str:
    sizes = " and ".join(str(size) for size in dict.fromkeys(metrics["onnx_batch_sizes"]))
    lengths = sorted(set(metrics["onnx_lengths"]))
    return (
        f"{metrics['onnx_max_abs_error']:.1e} in any output, {metrics['onnx_max_rel_error']:.1e} of the "
        f"largest; allowed {limits.max_onnx_abs_error:.0e} or {limits.max_onnx_rel_error:.0e}; "
        f"{metrics['onnx_agreement']:.2%} of predictions agree, {metrics['onnx_ties']} are level; "
        f"batches of {sizes}" + (f", lengths {lengths[0]} to {lengths[-1]}" if lengths else "")
    )


def _past(workspace: Workspace, generation: Generation | None) -> list[SessionFacts]:
    """The last generations that led here, as many as the page shows, oldest first.

    One that was deleted or damaged ends the chain: the page shows less, and status says why.
    """
    chain: list[Generation] = []
    while generation is not None and len(chain) < MAX_SESSIONS - 1:
        chain.append(generation)
        number = generation.manifest.parent
        if number is None:
            break
        try:
            generation = workspace.generation(number)
        except WorkspaceError:
            break
    facts: list[SessionFacts] = []
    for found in reversed(chain):
        facts.append(_facts(found.number, found.manifest.task, found.manifest.metrics))
    return facts


def _facts(number: int, task: str, metrics: Mapping[str, Any]) -> SessionFacts:
    """Scores on the anchors of each session so far; session i is called as its generation was."""
    return SessionFacts(number, task, metrics.get("accuracy_by_task", {}))


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif name == "target_modules":
            flat[prefix + name] = f"{len(value)} layers"
        else:
            flat[prefix + name] = value
    return flat
