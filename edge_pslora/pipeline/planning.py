"""How a session will be computed so that it keeps its budgets, decided before its first step.

The plan follows from model, data, options, budgets and processor; it is kept beside the checkpoints, so
that a resumed run goes on with it, whatever its own process measures.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from edge_pslora.config import AdaptConfig
from edge_pslora.core.footprint import Choice, Footprint, choose, finding_peak, least
from edge_pslora.errors import BudgetError, UsageError, WorkspaceError
from edge_pslora.models.types import EncodedInputs, LoadedModel
from edge_pslora.pipeline.footprint import RESIDENT_STEP, Known, measure
from edge_pslora.pipeline.resources import peak_rss_bytes
from edge_pslora.training.allocator import keep_freed, return_at_once
from edge_pslora.training.layout import suits
from edge_pslora.training.placing import CPU, find_device
from edge_pslora.training.plan import TrainingPlan, UsedPrecision, UsedPrefix
from edge_pslora.training.precision import has_bf16
from edge_pslora.units import format_size
from edge_pslora.workspace import durable, strict_json
from edge_pslora.workspace.staging import Staged

PLAN_FILE = "plan.json"
# bf16 pays where the time goes into large products: converting what goes in and out is the same for all.
# Rows and columns of a matrix that counts, and numbers in all of them from which on it is chosen.
LARGE_SIDE, LARGE_PRODUCTS = 128, 1_000_000
# what the bf16 kernels bring along and keep (measured on MiniLM): with less room they are not tried
BF16_KERNELS = 150 << 20
# samples at once of a large model: twice as many take twice the memory and save a twentieth of a step
# (MobileNetV1), and passes without gradients take longer with them: what they compute leaves the caches
PART = 16
ROUND = RESIDENT_STEP  # the least that would do is said with so much room, and then does


def usable_device(config: AdaptConfig) -> torch.device:
    """The one that the session is to be computed on.

    Raises:
        UsageError: there is none such, or a budget of the computer's memory was given for it.
    """
    device = find_device(config.engine.device)
    if device != CPU and config.budget.ram_bytes is not None:
        raise UsageError(
            "--ram-budget",
            expected="--device cpu beside it: it predicts what a session on the CPU takes",
            found=f"--device {config.engine.device}",
            remedy="leave one of them out",
        )
    return device


def precisions(
    model: LoadedModel, config: AdaptConfig, device: torch.device = CPU
) -> tuple[UsedPrecision, ...]:
    """Those to choose from, the preferred first."""
    wanted = config.engine.precision
    if wanted != "auto":
        return (wanted,)
    return ("bf16", "float32") if _is_large(model) and has_bf16(device) else ("float32",)


def _is_large(model: LoadedModel) -> bool:
    """Whether its products are large: decided by the sizes of its matrices, never by a clock."""
    module = model.backbone.model
    tables = {
        id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    sizes = (
        p.numel()
        for p in module.parameters()
        if p.dim() >= 2
        and id(p) not in tables
        and min(p.shape[0], p.numel() // max(p.shape[0], 1)) >= LARGE_SIDE
    )
    return sum(sizes) >= LARGE_PRODUCTS


def unplanned(
    model: LoadedModel, inputs: EncodedInputs, config: AdaptConfig, device: torch.device = CPU
) -> TrainingPlan:
    """Without a memory budget nothing has to be measured: whole batches, large models in parts.

    Beside the CPU nothing is kept of lower layers: reading it would take longer than computing it.
    """
    size, engine = config.train.batch_size, config.engine
    on_cpu = device == CPU
    part = min(size, PART) if on_cpu and _is_large(model) else size
    return TrainingPlan(
        micro_batch=min(engine.micro_batch or part, size),
        feature_batch=part,
        precision=precisions(model, config, device)[0],
        checkpointing=bool(engine.checkpointing),
        cut=on_cpu,
        channels_last=on_cpu and suits(model.backbone, inputs),
        device=str(device),
    )


def make_plan(known: Known) -> tuple[TrainingPlan, dict[str, int]]:
    """The plan, and its stages' predicted peaks in bytes.

    Raises:
        BudgetError: nothing fits --ram-budget; it names the least that would do.
    """
    config = known.config
    budget = config.budget.ram_bytes
    return_at_once()  # so that what is measured is what is needed
    found = _measured(known, budget)
    size = config.train.batch_size
    micro = config.engine.micro_batch
    micro = None if micro is None else min(micro, size)
    choice = choose(found, size, budget, micro)
    if choice is None or (budget is not None and peak_rss_bytes() > budget):
        raise _too_little(budget or 0, least(found, size, micro))
    plan = as_plan(choice)
    if config.engine.checkpointing:
        plan = replace(plan, checkpointing=True)  # a model without blocks: training says so
    return replace(plan, cut=budget is None or finding_peak(found) <= budget), dict(choice.peaks)


def _measured(known: Known, budget: int | None) -> Footprint:
    """bf16 is tried only where its kernels leave room: once they are loaded, they stay."""
    names = precisions(known.model, known.config)
    if len(names) > 1 and budget is not None:
        found = measure(known, ("float32",))
        left = budget - least(found, known.config.train.batch_size).peak
        if left < BF16_KERNELS:
            return found
    return measure(known, names)


def as_plan(choice: Choice) -> TrainingPlan:
    precision: UsedPrecision = "bf16" if choice.way.precision == "bf16" else "float32"
    return TrainingPlan(
        choice.micro_batch,
        choice.feature_batch,
        precision,
        choice.way.checkpointing,
        peak_bytes=choice.peak,
        returning=choice.returning,
    )


def apply_plan(plan: TrainingPlan) -> None:
    """Sets the allocator as the plan wants it."""
    if plan.returning:
        return_at_once()
    elif plan.peak_bytes:
        keep_freed()


def _too_little(budget: int, needed: Choice) -> BudgetError:
    stage = max(needed.peaks, key=lambda name: needed.peaks[name])
    enough = max(needed.peak, peak_rss_bytes()) + ROUND
    return BudgetError(
        "--ram-budget",
        expected=f"at most {format_size(budget)}",
        found=f"{format_size(needed.peak)}, predicted for {stage} with one sample at a time",
        remedy=f"nothing was changed; allow at least {enough} bytes, or use a smaller model or "
        "--max-length",
    )


def described_plan(plan: TrainingPlan, config: AdaptConfig) -> str:
    """The plan in one line."""
    size = config.train.batch_size
    parts = [
        f"batches of {size}"
        + (f" in parts of {plan.micro_batch}" if plan.micro_batch < size else ""),
        plan.precision,
    ]
    parts += [f"on {plan.device}"] if plan.device != "cpu" else []
    parts += ["activations computed twice"] if plan.checkpointing else []
    parts += [f"prefix kept: {plan.prefix}"] if plan.prefix != "off" else []
    parts += ["memory given back at once"] if plan.returning else []
    if plan.peak_bytes:
        budget = config.budget.ram_bytes
        allowed = f" of {format_size(budget)}" if budget is not None else ""
        parts.append(f"at most {format_size(plan.peak_bytes)}{allowed} of memory")
    return "plan: " + ", ".join(parts)


def keep_plan(staged: Staged, plan: TrainingPlan) -> None:
    durable.write_bytes(staged.scratch / PLAN_FILE, strict_json.canonical(plan.to_dict()))


def kept_plan(scratch: Path | None) -> TrainingPlan | None:
    """The plan of the run that left these checkpoints; None: none that can be trusted."""
    if scratch is None:
        return None
    path = scratch / PLAN_FILE
    if not path.exists():
        return None
    try:
        return _plan_of(strict_json.read(path))
    except WorkspaceError:
        return None  # as a damaged run.json: the run starts again from the beginning


def _plan_of(values: dict[str, Any]) -> TrainingPlan | None:
    known = TrainingPlan(1, 1).to_dict()
    same = values.keys() == known.keys() and all(
        type(values[name]) is type(value) for name, value in known.items()
    )
    if not same or values["precision"] not in get_args(UsedPrecision):
        return None
    if values["prefix"] not in get_args(UsedPrefix):
        return None
    if min(values["micro_batch"], values["feature_batch"]) < 1:
        return None
    return TrainingPlan(**values)
