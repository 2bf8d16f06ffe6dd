"""What a session will need, measured on one and two of its longest samples before the first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch

from edge_pslora.config import AdaptConfig
from edge_pslora.core.footprint import Footprint, Growth, Way
from edge_pslora.models.types import Backbone, LoadedModel
from edge_pslora.training.allocator import give_back
from edge_pslora.pipeline.resources import rss_bytes
from edge_pslora.tasks import TASKS
from edge_pslora.training.half_base import half_base
from edge_pslora.training.inject import Adapter, injected, new_adapters
from edge_pslora.training.live_bytes import LiveBytes
from edge_pslora.training.memory import Memory
from edge_pslora.training.session import SessionData
from edge_pslora.training.targets import Target

# measured: what torch.export, onnxscript and onnxruntime bring into a process before any weight
EXPORT_LIBRARIES = 150 << 20
RUNTIME_LIBRARIES = 40 << 20
# copies of all weights: in the graph that is made, in its bytes, in what is written
TRACED_COPIES, PATCHED_COPIES, PROVEN_COPIES = 3, 3, 3
# float32 numbers for each one trained: value, gradient, two moments, and the last good state of three,
# twice while it is renewed
TRAINED_COPIES = 10
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


def measure(known: Known, precisions: tuple[str, ...]) -> Footprint:
    """precisions: those to choose from, the preferred first."""
    model, config, head = known.model, known.config, known.memory.head
    adapters = _adapters(known)
    names = len(set(known.data.targets.tolist())) if head.kind == "label-text" else 0
    ways = tuple(
        Way(name, False, _with_names(_growth(known, adapters, name), names)) for name in precisions
    )
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
        resident=rss_bytes(),
        features=features,
        results=_results(known),
        trained=TRAINED_COPIES * trained + 3 * largest + cache,
        merging=MERGE_COPIES * sum(adapted) + 2 * largest,
        exporting=(EXPORT_LIBRARIES + TRACED_COPIES * weights)
        if known.first
        else RUNTIME_LIBRARIES + PATCHED_COPIES * weights,
        proving=Growth(
            (EXPORT_LIBRARIES if known.first else RUNTIME_LIBRARIES)
            + sessions * PROVEN_COPIES * weights
            + features.fixed,
            2 * features.each,
        ),
        ways=ways,
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


def _growth(known: Known, adapters: Mapping[str, Adapter], precision: str) -> Growth:
    task = TASKS[known.memory.head.task_type]
    backbone = known.model.backbone
    labels = known.memory.head.labels
    wanted = None if task.has_head else task.encode(known.data.targets[:2], labels)

    def step(inputs: Mapping[str, torch.Tensor]) -> None:
        outputs = backbone(**inputs)
        if wanted is None:
            loss = outputs.square().sum()
        else:
            loss = task.loss(outputs, wanted[: len(outputs)], dict(inputs), 1.0)
        loss.backward()
        for adapter in adapters.values():
            adapter.A.grad = adapter.B.grad = None

    with _precision(backbone, adapters, precision):
        return _measured(known, step)


def _precision(
    backbone: Backbone, adapters: Mapping[str, Adapter], precision: str
) -> AbstractContextManager[None]:
    if precision == "bf16":
        return half_base(backbone, adapters)
    return injected(backbone.model, adapters)


@torch.no_grad()
def _forward(backbone: Backbone, inputs: Mapping[str, torch.Tensor]) -> None:
    backbone(**inputs)


def _measured(known: Known, work: Callable[[Mapping[str, torch.Tensor]], None]) -> Growth:
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


def _with_names(growth: Growth, names: int) -> Growth:
    """The labels' names go through the model in every step, as further samples do."""
    return Growth(growth.fixed + names * growth.each, growth.each)
