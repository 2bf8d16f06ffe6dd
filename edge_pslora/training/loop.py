"""The optimisation loop of one session: adapters (and a linear head or norms) against L + weight * L_s."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edge_pslora.config import StabilityConfig, TrainConfig
from edge_pslora.core.stability import StabilityTarget
from edge_pslora.errors import EdgePsloraError, ModelError
from edge_pslora.models.types import EncodedInputs
from edge_pslora.training.adamw import AdamW
from edge_pslora.training.batches import epoch_batches
from edge_pslora.training.collapse import collapse_note
from edge_pslora.training.good_state import go_back, is_finite, remember
from edge_pslora.training.head_rows import RowPenalty
from edge_pslora.training.inject import Adapter
from edge_pslora.training.penalty import add_penalty, prepare_penalty

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
    """What the loop calls at every step boundary. `stop` returns a reason to end, or ""."""

    on_step: Callable[[int, str], None] = lambda samples, note: None
    stop: Callable[[], str] = lambda: ""
    store: CheckpointStore | None = None


def train(
    compute_loss: Callable[[dict[str, torch.Tensor], npt.NDArray[np.int64]], torch.Tensor],
    inputs: EncodedInputs,
    adapters: Mapping[str, Adapter],
    extra: Mapping[str, nn.Parameter],
    stability: Mapping[str, StabilityTarget],
    stability_config: StabilityConfig,
    config: TrainConfig,
    session: int,
    hooks: LoopHooks,
    rows: RowPenalty | None = None,
) -> TrainLog:
    """Trains A and B of every adapter, and the `extra` parameters, in place.

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
    optimizer = AdamW(named.values(), config.learning_rate)
    penalty = prepare_penalty(adapters, stability, stability_config, config.seed, session, rows)
    log = TrainLog(notes=[penalty.note] if penalty.note else [])
    rate_factor = 1.0
    if hooks.store is not None and (saved := hooks.store.load()) is not None:
        rate_factor = _restore(saved, named, optimizer, log)
    parameters = list(named.values())
    good = remember(parameters, optimizer)
    lengths = inputs.lengths()
    per_epoch = math.ceil(len(inputs) / config.batch_size)
    total = per_epoch * config.epochs
    position = log.steps + log.bad_steps
    hooks.on_step(sum(_batch_sizes(lengths, config, session, position)), "")
    batches: list[npt.NDArray[np.int64]] = []
    while position < total:
        if reason := hooks.stop():
            log.stop_reason = reason
            break
        epoch, index = divmod(position, per_epoch)
        if index == 0 or not batches:
            batches = epoch_batches(lengths, config.batch_size, config.seed, session, epoch)
        rate = config.learning_rate * rate_factor * _schedule(position, total, config)
        optimizer.learning_rate = rate
        batch = batches[index]
        optimizer.zero_grad()
        loss = compute_loss(inputs.batch(batch), batch)
        loss.backward()  # type: ignore[no-untyped-call]
        if position == 0:
            _require_gradients(adapters)
        added = add_penalty(penalty, position)
        norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        position += 1
        numbers = [loss.detach(), norm, *([] if added is None else [added.value, added.norm])]
        task_loss, size, *pulled = torch.stack([n.double() for n in numbers]).tolist()  # one sync
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
            continue
        good = remember(parameters, optimizer)
        log.first_step = log.first_step or time.monotonic()
        log.task_loss.append(task_loss)
        # at a step that leaves the penalty out, the value last seen stands for it
        log.penalty.append(pulled[0] if pulled else log.penalty[-1] if log.penalty else 0.0)
        log.pull += [pulled[1] / max(size, 1e-30)] if pulled else []
        hooks.on_step(len(batch), f"loss {log.task_loss[-1]:.3f}")
        if hooks.store is not None and position % config.checkpoint_every == 0:
            _checkpoint(hooks.store, named, optimizer, log, rate_factor)
    if note := collapse_note(log.task_loss, log.pull, stability_config.weight):
        log.notes.append(note)
    return log


def _batch_sizes(
    lengths: npt.NDArray[np.int64], config: TrainConfig, session: int, steps: int
) -> list[int]:
    """Sizes of the first `steps` batches: the samples that a resumed run has behind it."""
    per_epoch = math.ceil(len(lengths) / config.batch_size)
    sizes: list[int] = []
    for epoch in range(math.ceil(steps / per_epoch) if steps else 0):
        batches = epoch_batches(lengths, config.batch_size, config.seed, session, epoch)
        sizes += [len(b) for b in batches]
    return sizes[:steps]


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


def _checkpoint(
    store: CheckpointStore,
    named: Mapping[str, nn.Parameter],
    optimizer: AdamW,
    log: TrainLog,
    rate_factor: float,
) -> None:
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, parameter in named.items():
        arrays[f"{name}.value"] = parameter.detach().numpy().copy()
        for key, value in optimizer.state[parameter].items():
            arrays[f"{name}.{key}"] = np.atleast_1d(value.detach().numpy().copy())
    arrays["log.task_loss"] = np.array(log.task_loss, dtype=np.float64)
    arrays["log.penalty"] = np.array(log.penalty, dtype=np.float64)
    arrays["log.pull"] = np.array(log.pull, dtype=np.float64)
    store.save(arrays, {"bad_steps": log.bad_steps, "rate_factor": rate_factor})


def _restore(
    saved: tuple[dict[str, npt.NDArray[Any]], dict[str, Any]],
    named: Mapping[str, nn.Parameter],
    optimizer: AdamW,
    log: TrainLog,
) -> float:
    arrays, meta = saved
    for name, parameter in named.items():
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(arrays[f"{name}.value"]))
        if f"{name}.step" not in arrays:  # a norm beside the features never had a gradient
            continue
        optimizer.state[parameter] = {
            "step": torch.from_numpy(arrays[f"{name}.step"].copy())[0],
            "exp_avg": torch.from_numpy(arrays[f"{name}.exp_avg"].copy()),
            "exp_avg_sq": torch.from_numpy(arrays[f"{name}.exp_avg_sq"].copy()),
        }
    log.task_loss = arrays["log.task_loss"].tolist()
    log.penalty = arrays["log.penalty"].tolist()
    log.pull = arrays["log.pull"].tolist()
    log.bad_steps = int(meta["bad_steps"])
    log.resumed_at = log.steps + log.bad_steps
    return float(meta["rate_factor"])
