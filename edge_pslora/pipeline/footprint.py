"""What a session will need, measured on one and two of its longest samples before the first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch

from edge_pslora.config import AdaptConfig
from edge_pslora.core.footprint import Footprint, Growth, Way
from edge_pslora.models.types import Backbone, LoadedModel
from edge_pslora.pipeline.resources import rss_bytes
from edge_pslora.tasks import TASKS
from edge_pslora.training.allocator import give_back
from edge_pslora.training.checkpointing import blocks
from edge_pslora.training.inject import Adapter, new_adapters
from edge_pslora.training.live_bytes import LiveBytes
from edge_pslora.training.memory import Memory
from edge_pslora.training.plan import TrainingPlan, UsedPrecision
from edge_pslora.training.session import SessionData
from edge_pslora.training.session_loss import session_loss
from edge_pslora.training.stepping import settled, stepping
from edge_pslora.training.targets import Target
from edge_pslora.training.token_loss import LARGE

# measured: what torch.export, onnxscript and onnxruntime bring into a process before any weight
EXPORT_LIBRARIES = 150 << 20
RUNTIME_LIBRARIES = 40 << 20
# copies of all weights: in the graph that is made, in its bytes, in what is written
TRACED_COPIES, PATCHED_COPIES, PROVEN_COPIES = 2, 2, 2
# float32 numbers for each one trained: value, gradient, two moments, and the last good state of three,
# twice while it is renewed
TRAINED_COPIES = 10
RESIDENT_STEP = 16 << 20
# after the merge: adapted weights as they are mapped from the base's file, and as they were merged; what
# kernels and heap keep of the steps (measured on MiniLM: 119 MB in all)
LEFT_COPIES, LEFT_KERNELS = 2, 48 << 20
MERGE_COPIES = 5  # of the adapted weights: past, updates, their sums, what is kept, one at work


@dataclass(frozen=True)
class Known:
    """Of a session, before it begins. first: there is no generation yet, so that the graph is traced."""

    model: LoadedModel
    memory: Memory
    targets: tuple[Target, ...]
    data: SessionData
    config: AdaptConfig
    first: bool


def ways_of(
    precisions: Sequence[UsedPrecision], config: AdaptConfig, *, repeats: bool
) -> list[tuple[UsedPrecision, bool]]:
    """(precision, checkpointing), the fastest first: computing forward twice costs a third.

    repeats: the model has blocks whose activations can be computed again.
    """
    wanted = config.engine.checkpointing if repeats else False
    again = (False, True) if wanted is None else (wanted,)
    return [(precision, twice) for precision in precisions for twice in again]


def measure(known: Known, precisions: Sequence[UsedPrecision]) -> Footprint:
    """precisions: those to choose from, the preferred first."""
    model, config = known.model, known.config
    adapters = _adapters(known)
    size = config.train.batch_size
    ways = ways_of(precisions, config, repeats=bool(blocks(model.backbone.model)))
    plans = [TrainingPlan(size, size, *way) for way in ways]
    taken = [_way(known, adapters, plan) for plan in plans]
    features = _measured(known, lambda inputs: _forward(model.backbone, inputs))
    weights = sum(p.numel() for p in model.backbone.model.parameters()) * 4
    adapted = [4 * t.shape[0] * t.shape[1] for t in known.targets]
    trained = 4 * sum(a.A.numel() + a.B.numel() for a in adapters.values())
    largest = max(adapted)
    cache = sum(adapted) // 4 if config.stability.history_cache == "int8" else 0
    sessions = 1 if known.first else 2
    del adapters
    give_back()
    return Footprint(
        # in steps, so that the same session is planned alike from run to run
        resident=-(-rss_bytes() // RESIDENT_STEP) * RESIDENT_STEP,
        features=features,
        results=_results(known),
        trained=TRAINED_COPIES * trained + 3 * largest + cache,
        merging=MERGE_COPIES * sum(adapted) + 2 * largest,
        left=LEFT_COPIES * sum(adapted),
        kernels=LEFT_KERNELS,
        exporting=(EXPORT_LIBRARIES + TRACED_COPIES * weights)
        if known.first
        else RUNTIME_LIBRARIES + PATCHED_COPIES * weights,
        proving=Growth(
            (EXPORT_LIBRARIES if known.first else RUNTIME_LIBRARIES)
            + sessions * PROVEN_COPIES * weights
            + features.fixed,
            features.each,
        ),
        ways=tuple(way for way in taken if way is not None),
    )


def _adapters(known: Known) -> dict[str, Adapter]:
    generator = torch.Generator().manual_seed(0)
    return new_adapters(known.targets, known.config.lora.rank, 1.0, generator)


def _results(known: Known) -> int:
    """Features of all samples, before and after, and what the analytic head makes of them."""
    if not TASKS[known.memory.head.task_type].has_head:
        return 0
    count, size = len(known.data.inputs), known.model.feature_size
    features = 2 * 4 * count * size
    if known.memory.head.kind != "analytic":
        return features
    labels = len(set(map(str, known.data.targets))) + len(known.memory.head.labels)
    folds = known.config.head.folds
    scores = 4 * count * labels * (folds + 4) * 2
    return features + 2 * 8 * count * size + 12 * 8 * size * size + scores


def _way(known: Known, adapters: Mapping[str, Adapter], plan: TrainingPlan) -> Way | None:
    """None: this model cannot be computed so."""
    task = TASKS[known.memory.head.task_type]
    backbone, inputs = known.model.backbone, known.data.inputs
    labels = known.memory.head.labels
    wanted = None if task.has_head else task.encode(known.data.targets[:2], labels)
    with ExitStack() as stack:
        few = inputs.batch(np.arange(min(2, len(inputs)), dtype=np.int64))
        required = known.config.engine.precision == "bf16"
        if settled(backbone, adapters, plan, few, required)[0] != plan:
            return None
        if stack.enter_context(stepping(backbone, adapters, plan)):
            return None
        loss = stack.enter_context(
            session_loss(task, backbone, adapters, inputs, known.config, plan)
        )

        def step(batch: dict[str, torch.Tensor]) -> None:
            outputs = backbone(**batch)
            value = outputs.square().sum()
            if wanted is not None:
                value = loss(outputs, wanted[: len(outputs)], batch, 1.0)
            value.backward()
            for adapter in adapters.values():
                adapter.A.grad = adapter.B.grad = None

        taken = _measured(known, step)
    head = known.memory.head
    # the labels' names go through the model in every step, as further samples do
    names = len(set(known.data.targets.tolist())) if head.kind == "label-text" else 0
    # small parts make their logits at once
    logits = 0 if task.has_head else 4 * LARGE
    fixed = taken.fixed + names * taken.each + logits
    return Way(plan.precision, plan.checkpointing, Growth(fixed, taken.each))


@torch.no_grad()
def _forward(backbone: Backbone, inputs: Mapping[str, torch.Tensor]) -> None:
    backbone(**inputs)


def _measured(known: Known, work: Callable[[dict[str, torch.Tensor]], None]) -> Growth:
    """From one sample and from two, the longest: what each further one takes."""
    order = np.argsort(known.data.inputs.lengths(), kind="stable").astype(np.int64)[::-1]
    taken = []
    for count in (1, 2):
        inputs = known.data.inputs.batch(order[: min(count, len(order))])
        with LiveBytes() as live:
            work(inputs)
        taken.append(live.peak)
    each = max(taken[1] - taken[0], taken[0] // 2)
    return Growth(max(0, taken[0] - each), each)
