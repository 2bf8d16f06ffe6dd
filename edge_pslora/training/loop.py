"""The optimisation loop of one session: adapters (and a linear head or norms) against L + weight * L_s."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import nn

from edge_pslora.config import StabilityConfig, TrainConfig
from edge_pslora.core.stability import StabilityTarget
from edge_pslora.errors import EdgePsloraError, ModelError, NotEligibleError
from edge_pslora.models.types import EncodedInputs
from edge_pslora.training.adamw import AdamW
from edge_pslora.training.batches import Indices, epoch_batches
from edge_pslora.training.collapse import collapse_note
from edge_pslora.training.good_state import go_back, is_finite, remember
from edge_pslora.training.head_rows import RowPenalty
from edge_pslora.training.inject import Adapter
from edge_pslora.training.loop_state import restore, save
from edge_pslora.training.micro import ComputeLoss, add_gradients
from edge_pslora.training.penalty import add_penalty, prepare_penalty
from edge_pslora.training.watching import Watch, watch_loss

MAX_BAD_STEPS = 3  # steps that went wrong and that a session survives, halving the rate each time


class CheckpointStore(Protocol):
    """Where the loop's state is kept between steps; the workspace provides it."""

    def load(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]] | None: ...

    def save(self, arrays: Mapping[str, npt.NDArray[Any]], meta: Mapping[str, Any]) -> None: ...


@dataclass
class TrainLog:
    """One entry per step; losses have no unit. `stop_reason` is empty after a full run.

    penalty: weight * mean over layers of L_s, estimated from the rows of the step where rows are
    sampled. pull: |gradient of the penalty| / |gradient of task and penalty|, at the steps that compute
    it. first_step: time.monotonic() when the first one was done. notes: what people should know, one
    sentence each.
    """

    task_loss: list[float] = field(default_factory=list)
    penalty: list[float] = field(default_factory=list)
    pull: list[float] = field(default_factory=list)
    bad_steps: int = 0
    resumed_at: int = 0
    stop_reason: str = ""
    first_step: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return len(self.task_loss)


@dataclass(frozen=True)
class LoopHooks:
    """What the loop calls at every step boundary. `stop` returns a reason to end, or ""; `due` is asked
    before each checkpoint but the one of a session that has to stop now."""

    on_step: Callable[[int, str], None] = lambda samples, note: None
    stop: Callable[[], str] = lambda: ""
    store: CheckpointStore | None = None
    due: Callable[[], bool] = lambda: True


@dataclass(frozen=True)
class Sampling:
    """Which samples are learned from, and how. N samples.

    micro_batch: samples in one forward and backward pass; None: a whole batch.
    terms: int64 [N], how many terms of the loss' mean each sample brings; None: one each.
    classes: int64 [N], drawn from evenly; None: every sample once in an epoch.
    watched: int64, positions that are not learned from: once the loss there no longer falls, training
    ends with the state in which it was least. Empty: nothing is watched.
    """

    micro_batch: int | None = None
    terms: Indices | None = None
    classes: Indices | None = None
    watched: Indices = field(default_factory=lambda: np.zeros(0, np.int64))


def train(
    compute_loss: ComputeLoss,
    inputs: EncodedInputs,
    adapters: Mapping[str, Adapter],
    extra: Mapping[str, nn.Parameter],
    stability: Mapping[str, StabilityTarget],
    stability_config: StabilityConfig,
    config: TrainConfig,
    session: int,
    hooks: LoopHooks,
    rows: RowPenalty | None = None,
    sampling: Sampling | None = None,
) -> TrainLog:
    """Trains A and B of every adapter, and the `extra` parameters, in place; those of a head ("head.")
    at its own rate.

    A step whose loss, gradient, weights or moments are not finite is undone: back to the state before
    it, without its batch, at half the rate.

    rows: those of a head among `extra` that the stability loss holds too.
    compute_loss: (model inputs, sample indices) -> scalar task loss. Batches, rates and start values
    depend on the configuration alone, so a run resumed from a checkpoint ends in the same bytes.

    Raises:
        ModelError: a target gets no gradient at the first step.
        EdgePsloraError: more than MAX_BAD_STEPS steps were not finite. There is no candidate then that
            a gate could refuse: the session failed and the old model serves (exit code 1, not 3).
    """
    named = {f"{n}.{part}": p for n, a in adapters.items() for part, p in (("A", a.A), ("B", a.B))}
    named |= extra
    sampling = sampling or Sampling()
    of_head = {p: config.head_rate for name, p in extra.items() if name.startswith("head.")}
    optimizer = AdamW(named.values(), config.rate, times=of_head)
    penalty = prepare_penalty(adapters, stability, stability_config, config.seed, session, rows)
    log = TrainLog()
    rate_factor = 1.0
    watch = Watch() if len(sampling.watched) else None
    if hooks.store is not None and (saved := hooks.store.load()) is not None:
        rate_factor = restore(saved, named, optimizer, log, watch)
    parameters = list(named.values())
    good = remember(parameters, optimizer)
    lengths = inputs.lengths()
    learned = np.setdiff1d(np.arange(len(lengths), dtype=np.int64), sampling.watched)
    per_epoch = math.ceil(len(learned) / config.batch_size)
    total = per_epoch * config.epochs
    position = log.steps + log.bad_steps

    def batches_of(epoch: int) -> list[Indices]:
        classes = None if sampling.classes is None else sampling.classes[learned]
        drawn = epoch_batches(
            lengths[learned], config.batch_size, config.seed, session, epoch, classes
        )
        return [learned[batch] for batch in drawn]

    @contextmanager
    def saved_if_stopped() -> Iterator[None]:
        """Parameters and log are those of the last whole step, also in the midst of one."""
        try:
            yield
        except NotEligibleError:
            if hooks.store is not None:
                save(hooks.store, named, optimizer, log, rate_factor, watch)
            raise

    hooks.on_step(_samples_before(batches_of, per_epoch, position), "")
    batches: list[Indices] = []
    while position < total:
        if watch is not None and watch.over:
            break
        with saved_if_stopped():
            log.stop_reason = hooks.stop()
        if log.stop_reason:
            if position == 0:
                log.notes.append(f"{log.stop_reason}: it was over before the first step")
            break
        epoch, index = divmod(position, per_epoch)
        if index == 0 or not batches:
            batches = batches_of(epoch)
        rate = config.rate * rate_factor * _schedule(position, total, config)
        optimizer.learning_rate = rate
        batch = batches[index]
        optimizer.zero_grad()
        with saved_if_stopped():
            loss = add_gradients(compute_loss, inputs, batch, sampling.micro_batch, sampling.terms)
        if position == 0:
            _require_gradients(adapters)
        added = add_penalty(penalty, position)
        norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        position += 1
        numbers = [loss, norm, *([] if added is None else [added.value, added.norm])]
        task_loss, size, *pulled = map(float, numbers)
        finite = math.isfinite(size) and math.isfinite(task_loss)
        if finite:
            optimizer.step()
            finite = is_finite(parameters, optimizer)
        if not finite:
            go_back(good, parameters, optimizer)
            log.bad_steps += 1
            rate_factor /= 2
            if log.bad_steps > MAX_BAD_STEPS:
                raise EdgePsloraError(
                    f"training, step {position}",
                    expected="a finite loss",
                    found=f"{log.bad_steps} steps with a non-finite loss, gradient or weight",
                    remedy="the old model was kept; check the data or lower --learning-rate",
                )
            _look(watch, index + 1 == per_epoch, compute_loss, inputs, sampling, config, parameters)
            continue
        good = remember(parameters, optimizer, good)
        log.first_step = log.first_step or time.monotonic()
        log.task_loss.append(task_loss)
        # at a step that leaves the penalty out, the value last seen stands for it
        log.penalty.append(pulled[0] if pulled else log.penalty[-1] if log.penalty else 0.0)
        log.pull += [pulled[1] / max(size, 1e-30)] if pulled else []
        _look(watch, index + 1 == per_epoch, compute_loss, inputs, sampling, config, parameters)
        hooks.on_step(len(batch), f"loss {log.task_loss[-1]:.3f}")
        due = position % config.checkpoint_every == 0
        if hooks.store is not None and due and hooks.due():
            save(hooks.store, named, optimizer, log, rate_factor, watch)
    if watch is not None and (note := watch.finish(parameters)):
        log.notes.append(note)
    if note := collapse_note(log.task_loss, log.pull, stability_config.weight):
        log.notes.append(note)
    return log


def _look(
    watch: Watch | None,
    epoch_ends: bool,
    compute_loss: ComputeLoss,
    inputs: EncodedInputs,
    sampling: Sampling,
    config: TrainConfig,
    parameters: list[nn.Parameter],
) -> None:
    if watch is not None and epoch_ends:
        size = sampling.micro_batch or config.batch_size
        loss = watch_loss(compute_loss, inputs, sampling.watched, size, sampling.terms)
        watch.add(loss, parameters)


def _samples_before(batches_of: Callable[[int], list[Indices]], per_epoch: int, steps: int) -> int:
    """Samples in the first `steps` batches: those that a resumed run has behind it."""
    epochs = math.ceil(steps / per_epoch) if steps else 0
    batches = [batch for epoch in range(epochs) for batch in batches_of(epoch)]
    return sum(len(batch) for batch in batches[:steps])


def _schedule(position: int, total: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine to zero; factor in (0, 1]."""
    warmup = max(1, round(total * config.warmup_fraction))
    if position < warmup:
        return (position + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (position - warmup) / max(1, total - warmup)))


def _require_gradients(adapters: Mapping[str, Adapter]) -> None:
    dead = [n for n, a in adapters.items() if a.B.grad is None or not bool(a.B.grad.any())]
    if dead:
        raise ModelError(
            f"target {dead[0]}",
            expected="a gradient at the first step",
            found=f"none for {len(dead)} of {len(adapters)} targets: {', '.join(dead[:4])}",
            remedy="leave these layers out with --target: they do not influence the output",
        )
