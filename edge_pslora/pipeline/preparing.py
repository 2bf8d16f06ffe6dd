"""What a session starts from: data read and parted, the parent's memory, the anchors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_pslora.config import RATE, AdaptConfig
from edge_pslora.data.split import split
from edge_pslora.data.types import Dataset, Samples
from edge_pslora.errors import DataError, UsageError
from edge_pslora.models.types import LoadedModel
from edge_pslora.pipeline.imported import PastAdapter, start_after
from edge_pslora.pipeline.judging import Held, HeldAnchors
from edge_pslora.pipeline.memory_files import load_anchors, load_memory, load_merged
from edge_pslora.tasks.types import Task
from edge_pslora.training.anchor import AnchorSet, grow
from edge_pslora.training.memory import Memory, first_memory
from edge_pslora.training.rate import with_rate
from edge_pslora.training.targets import Target, adapted_targets, find_targets
from edge_pslora.workspace.generation import Generation

HOLDOUT_SHARE = 0.1
LEAST_HOLDOUT = (
    50  # of these the gate can tell noise from harm; a small session gives up to a fifth
)
MOST_HOLDOUT_SHARE = 0.2
MAX_HOLDOUT = 1000


def task_name(task: str | None, data: Path) -> str:
    return task if task is not None else (data.resolve().stem or "task")


def parts(dataset: Dataset, seed: int) -> tuple[Samples, Samples]:
    """(training, holdout): the valid part where there is one, else a share of each class."""
    train, held = dataset.train, dataset.valid
    if held is None:
        train, held = split(train, holdout_share(len(train)), seed)
    if len(held) == 0 or len(train) == 0:
        raise DataError(
            dataset.source,
            expected="at least two samples of some class, one to train on and one to check with",
            found=f"{len(dataset.train)} samples",
            remedy="add samples, or a valid.jsonl beside train.jsonl",
        )
    if len(held) > MAX_HOLDOUT:
        generator = np.random.Generator(np.random.PCG64(seed))
        held = held.take(np.sort(generator.permutation(len(held))[:MAX_HOLDOUT]).astype(np.int64))
    return train, held


def holdout_share(samples: int) -> float:
    """A tenth, and more of a small session: up to a fifth of it, for 50 samples."""
    return min(MOST_HOLDOUT_SHARE, max(HOLDOUT_SHARE, LEAST_HOLDOUT / max(samples, 1)))


def start_from(
    parent: Generation | None,
    model: LoadedModel,
    config: AdaptConfig,
    train: Samples,
    past: Sequence[PastAdapter],
    base: Path,
) -> tuple[Memory, AnchorSet | None, tuple[Target, ...]]:
    """The memory to go on from; the model gets the parent's weights, or those of the adapters in
    `past` on top of `base`, the base's folder."""
    if parent is None:
        imported = [name for adapter in past for name in adapter.layers]
        chosen = adapted_targets(model.backbone.model, config)
        patterns = (*(target.name for target in chosen), *imported)
        targets = find_targets(model.backbone.model, patterns)
        memory = first_memory(model, targets, config, train.task_type)
        if past:
            memory = start_after(past, memory, model, base, targets, config)
        return memory, None, targets
    if past:
        raise UsageError(
            "--adapter",
            expected="a first session: adapters come before everything else",
            found=f"generation {parent.number}",
            remedy="leave --adapter out, or start a new workspace",
        )
    memory = load_memory(parent)
    load_merged(model, parent)
    patterns = config.lora.target_modules
    if patterns == ("auto",):
        patterns = tuple(memory.history)
    named = replace(config, lora=replace(config.lora, target_modules=patterns))
    targets = adapted_targets(model.backbone.model, named)
    if {t.name for t in targets} != set(memory.history):
        raise UsageError(
            "--target",
            expected=f"the {len(memory.history)} targets of the earlier sessions",
            found=", ".join(t.name for t in targets),
            remedy="leave --target and --adapt-depth out, or start a new workspace",
        )
    _require_same_head(config, memory)
    return memory, load_anchors(parent), targets


def _require_same_head(config: AdaptConfig, memory: Memory) -> None:
    kind = memory.head.kind
    if config.head.kind not in ("auto", kind):
        raise UsageError(
            "--head",
            expected=f"{kind}, as in the earlier sessions",
            found=config.head.kind,
            remedy="leave --head out, or start a new workspace",
        )
    if (memory.running is not None) != (config.merge == "cumulative") and memory.sessions > 0:
        raise UsageError(
            "--merge",
            expected="cumulative in all sessions of a workspace or in none",
            found=config.merge,
            remedy="use the rule of the earlier sessions, or start a new workspace",
        )


def adapter_parameters(targets: tuple[Target, ...], config: AdaptConfig) -> int:
    """How many numbers the adapters hold: A [r, in] and B [out, r] of every target."""
    return sum(config.lora.rank * sum(target.shape) for target in targets)


def forget_weights(model: LoadedModel) -> None:
    """Gives up the memory of a model that will not compute again."""
    for parameter in model.backbone.model.parameters():
        parameter.data = parameter.data.new_empty(0)


def described(model: LoadedModel, targets: tuple[Target, ...], config: AdaptConfig) -> str:
    """What a session is about to train, in one line."""
    trained = adapter_parameters(targets, config)
    total = sum(parameter.numel() for parameter in model.backbone.model.parameters())
    ends = dict.fromkeys(".".join(target.name.split(".")[-2:]) for target in targets)
    names = list(dict.fromkeys(_without_numbers(end) for end in ends))
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    rate = "" if config.train.rate == RATE else f" at a rate of {config.train.rate:g}"
    return (
        f"rank {config.lora.rank} on {len(targets)} layers ({shown}): "
        f"{trained:,} of {total:,} parameters are trained{rate}"
    )


def _without_numbers(name: str) -> str:
    return ".".join(part for part in name.split(".") if not part.isdigit())


def with_targets(config: AdaptConfig, task: Task, targets: tuple[Target, ...]) -> AdaptConfig:
    """The settings as the session has them: layers by name, a learning rate."""
    names = tuple(t.name for t in targets)
    return with_rate(
        replace(config, lora=replace(config.lora, target_modules=names)), task, targets
    )


def grown_anchors(
    anchors: AnchorSet | None, holdout: Held, session: int, config: AdaptConfig
) -> AnchorSet | None:
    everything = np.arange(len(holdout.targets), dtype=np.int64)
    new = AnchorSet(
        holdout.inputs.to_arrays(everything),
        holdout.targets,
        np.full(len(everything), session, dtype=np.int32),
    )
    return grow(anchors, new, config.budget.anchor_bytes, config.train.seed)


def held_anchors(model: LoadedModel, anchors: AnchorSet | None) -> HeldAnchors | None:
    if anchors is None:
        return None
    inputs = model.encoder.from_arrays(dict(anchors.inputs))
    return HeldAnchors(inputs, anchors.targets, anchors.session)
