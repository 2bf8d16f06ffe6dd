"""One session in memory: train an adapter on new data, merge it, fold it into the history, refit the head.

METHOD.md, "Training session t" and "The head": (1) statistics of the new data under the old features
give a first head; (2) the adapter is trained through it, on base + merged past + new update, with the
stability loss, and rounded to the form in which it can be shipped; (3) the update is merged; (4) the
old statistics are transported into the new features, the new data's statistics are added, the head is
solved again. That is the analytic head; what (1) and (4) are for the others, `head_session` says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edge_pslora.config import AdaptConfig, TrainConfig
from edge_pslora.core.gram_rank import gram_rank
from edge_pslora.core.history import fold, pool_bytes
from edge_pslora.core.lora import relative_norm
from edge_pslora.core.stability import stability_target
from edge_pslora.errors import ModelError
from edge_pslora.models.types import Backbone, EncodedInputs, LoadedModel
from edge_pslora.progress import Progress, SilentProgress
from edge_pslora.tasks import TASKS
from edge_pslora.training.allocator import give_back
from edge_pslora.training.features import Around, extract_features
from edge_pslora.training.half_base import half_base
from edge_pslora.training.head import extend_labels, will_transport
from edge_pslora.training.head_session import Unseen, begin_head
from edge_pslora.training.inject import Adapter, injected, new_adapters
from edge_pslora.training.loop import CheckpointStore, LoopHooks, TrainLog, train
from edge_pslora.training.memory import BaseWeights, Memory
from edge_pslora.training.merging import (
    kept_past,
    merge_all,
    prove_deltas,
    running_sums,
    sign_conflicts,
    target_weights,
)
from edge_pslora.training.norms import norm_parameters
from edge_pslora.training.placing import device_of
from edge_pslora.training.plan import TrainingPlan, plain_plan
from edge_pslora.training.prefix_cache import PrefixCache
from edge_pslora.training.rate import with_rate
from edge_pslora.training.session_loss import answered_loss, session_loss, session_sampling
from edge_pslora.training.stepping import settled, stepping
from edge_pslora.training.targets import adapted_targets, as_matrix


@dataclass(frozen=True)
class SessionData:
    """The session's training samples: N encoded inputs and their N targets (names or values)."""

    inputs: EncodedInputs
    targets: npt.NDArray[np.str_] | npt.NDArray[np.float32]


@dataclass(frozen=True)
class LayerReport:
    """One target after a session. Shares in [0, 1]; relative_norm = |D|_F / |W0|_F.

    sign_conflict: entries of D with the opposite sign of M_{t-1}; None in the first session.
    """

    name: str
    rank: int
    relative_norm: float
    kept_past: float
    history_rank: int
    eps: float
    sign_conflict: float | None


@dataclass(frozen=True)
class SessionResult:
    """zero_shot_accuracy: on the session's samples before any training; label-text head only.
    unseen: analytic head only."""

    adapters: Mapping[str, Adapter]
    memory: Memory
    log: TrainLog
    layers: tuple[LayerReport, ...]
    merge_error: float
    seconds: dict[str, float]
    zero_shot_accuracy: float | None = None
    unseen: Unseen | None = None


def run_session(
    model: LoadedModel,
    base_weights: BaseWeights,
    memory: Memory,
    data: SessionData,
    config: AdaptConfig,
    *,
    plan: TrainingPlan | None = None,
    lower: Sequence[str] = (),
    prefix: PrefixCache | None = None,
    progress: Progress | None = None,
    stop: Callable[[], str] = lambda: "",
    store: CheckpointStore | None = None,
    check: Callable[[], None] = lambda: None,
    due: Callable[[], bool] = lambda: True,
) -> SessionResult:
    """Adapts the model in place: afterwards it has the weights to deploy, and `memory.head` its head.

    On entry the model carries W0 + M_{t-1}, and is where it is to be trained (`placing.placed`); what
    comes back besides it is on the CPU. The function raises before the weights change, or leaves them
    half changed: the caller then discards the model.

    Args:
        plan: how it is computed; None: whole batches in float32. Its layout of pictures is the
            caller's to enter, for all that the session computes with the model.
        lower: modules below all that is trained, which stay in float32 where a step is in bf16.
        prefix: where the activations that they give are kept; None: nowhere.
        stop: asked at every step; a non-empty reason ends training there.
        store: keeps the loop's state, so that a killed run goes on where it was.
        check: called with every part of a batch; raises NotEligibleError to stop there and then.
        due: whether a checkpoint is worth its writing; asked every `checkpoint_every` steps.
    """
    plan = plan or plain_plan(config)
    progress = progress or SilentProgress()
    clock = _Clock()
    targets = adapted_targets(model.backbone.model, config)
    history_size = pool_bytes({t.name: t.shape for t in targets}, config.budget.history_bytes)
    if memory.head.kind == "analytic":
        gram_rank(model.feature_size, config.budget.head_bytes)  # refuses a budget before training
    session = memory.sessions + 1
    head = memory.head
    task = TASKS[head.task_type]
    config = with_rate(config, task, targets)
    names = sorted(task.labels_in(data.targets), key=_natural)
    head = extend_labels(head, tuple(names))
    if head.task_type == "regression":
        head = replace(head, values=head.values.with_values(data.targets))
    wanted = task.encode(data.targets, head.labels)

    generator = torch.Generator().manual_seed(config.train.seed * 1_000_003 + session)
    device = device_of(model.backbone.model)
    adapters = new_adapters(targets, config.lora.rank, config.lora.scaling, generator, device)
    few = min(8, plan.micro_batch, len(data.inputs))
    probe = data.inputs.batch(np.arange(few, dtype=np.int64))
    required = config.engine.precision == "bf16"
    plan, notes = settled(model.backbone, adapters, plan, probe, required, lower)
    give_back()
    half = plan.precision == "bf16" and not will_transport(head, config.head)
    in_session = begin_head(
        model,
        memory.head,
        head,
        wanted,
        config,
        lambda stage: _features(
            model.backbone,
            data,
            plan,
            progress,
            stage,
            prefix,
            check,
            lower if half and stage == "features before" else None,
        ),
        generator,
    )
    if prefix is not None and not prefix.complete:
        progress.start("lower layers", len(data.inputs))
        prefix.fill(model.backbone, data.inputs, plan.feature_batch, _counted(progress, check))
        progress.finish()
    clock.lap("features before")

    weights = target_weights(model.backbone.model, targets, base_weights)
    past: dict[str, torch.Tensor] | None = None
    if memory.running is not None:  # `cumulative` trains on from another model than it deploys
        past = weights.past()
        weights.set_to(memory.running)
    stability = {
        t.name: stability_target(
            *memory.history[t.name].factors(),
            _rms(base_weights(t.weight_name)),
        )
        for t in targets
    }
    extra = _extra_parameters(model.backbone, config, in_session.parameters)

    sampling = session_sampling(task, data.inputs, wanted, config, plan)
    progress.start("training", len(data.targets) * config.train.epochs)
    with ExitStack() as stack:
        notes += stack.enter_context(stepping(model.backbone, adapters, plan, lower))
        loss = stack.enter_context(
            session_loss(task, model.backbone, adapters, data.inputs, config, plan)
        )
        answered = answered_loss(in_session, loss, wanted, config.stability.features)

        def compute_loss(
            inputs: dict[str, torch.Tensor], batch: npt.NDArray[np.int64]
        ) -> torch.Tensor:
            if torch.is_grad_enabled():
                check()
            samples = torch.from_numpy(batch)
            with nullcontext() if prefix is None else prefix.reading(model.backbone, batch):
                outputs = model.backbone(**inputs)
            inputs = {name: x.to(outputs.device) for name, x in inputs.items()}
            logits = in_session.logits(outputs, samples)
            return answered(outputs, logits, samples, inputs, head.target_scale)

        log = train(
            compute_loss,
            data.inputs,
            adapters,
            extra,
            stability,
            config.stability,
            _rates(model, config.train),
            session,
            LoopHooks(lambda n, note: progress.advance(n, note), stop, store, due),
            in_session.rows,
            sampling,
        )
    log.notes += notes
    for adapter in adapters.values():  # from here on, everything is computed with what is shipped
        adapter.round_to(config.lora.factors)
    with injected(model.backbone.model, adapters), torch.no_grad():
        adapter_features = model.backbone(**probe)
    adapters = {name: adapter.on_cpu() for name, adapter in adapters.items()}
    progress.finish()
    log.notes += [n for n in (in_session.competing.note, prefix.note if prefix else "") if n]
    for parameter in extra.values():
        parameter.requires_grad_(False)
    clock.lap("training")

    past = weights.past() if past is None else past
    deltas = {name: adapter.delta() for name, adapter in adapters.items()}
    merge_error = prove_deltas(model.backbone, weights, deltas, probe, adapter_features)
    running = running_sums(config.merge, memory.running or past, deltas)
    merged = merge_all(config.merge, past, running or deltas, session)
    kept = kept_past(past, merged, session)
    conflicts = sign_conflicts(past, deltas, session)
    weights.set_to(merged)
    history = fold(
        memory.history,
        {n: (a.scaling * a.B.detach(), a.A.detach()) for n, a in adapters.items()},
        history_size,
    )
    clock.lap("merge")

    head = in_session.finish()
    clock.lap("features after")
    layers = tuple(
        LayerReport(
            t.name,
            config.lora.rank,
            relative_norm(deltas[t.name], as_matrix(base_weights(t.weight_name), t)),
            kept[t.name],
            history[t.name].rank,
            history[t.name].eps,
            conflicts[t.name],
        )
        for t in targets
    )
    return SessionResult(
        adapters,
        Memory(session, history, head, running),
        log,
        layers,
        merge_error,
        clock.seconds,
        in_session.zero_shot,
        in_session.unseen,
    )


class _Clock:
    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        give_back()  # or the next stage's peak comes on top of what this one left in the heap
        self._last = now


def _natural(label: str) -> tuple[int, float, str]:
    """Sorts '2' before '10', and numbers before names."""
    try:
        return (0, float(label), label)
    except ValueError:
        return (1, 0.0, label)


def _rms(weight: torch.Tensor) -> float:
    return float(weight.float().pow(2).mean().sqrt())


def _features(
    backbone: Backbone,
    data: SessionData,
    plan: TrainingPlan,
    progress: Progress,
    stage: str,
    prefix: PrefixCache | None = None,
    check: Callable[[], None] = lambda: None,
    half: Sequence[str] | None = None,
) -> torch.Tensor:
    """half: the modules that stay in float32 where all else computes in bf16; None: float32 throughout."""
    around: Around = lambda samples: nullcontext()  # noqa: E731
    if prefix is not None and (prefix.exact or not prefix.complete):
        around = partial(prefix.during, backbone)
    progress.start(stage, len(data.inputs))
    with nullcontext() if half is None else half_base(backbone, {}, half):
        features = extract_features(
            backbone, data.inputs, plan.feature_batch, _counted(progress, check), around
        )
    give_back()  # before the algebra that follows
    progress.finish()
    if not bool(features.isfinite().all()):
        bad = int((~features.isfinite()).flatten(1).any(1).sum())
        raise ModelError(
            stage,
            expected="finite features of every sample",
            found=f"NaN or infinity for {bad} of {len(features)}",
            remedy="the old model was kept; look at these samples, or lower --learning-rate",
        )
    return features


def _counted(progress: Progress, check: Callable[[], None]) -> Callable[[int], None]:
    def on_batch(count: int) -> None:
        check()
        progress.advance(count)

    return on_batch


def _rates(model: LoadedModel, config: TrainConfig) -> TrainConfig:
    """A classifier that came with the model has been trained, and goes on at the adapters' rate."""
    return config if model.base_head is None else replace(config, head_rate=1.0)


def _extra_parameters(
    backbone: Backbone, config: AdaptConfig, head: Mapping[str, nn.Parameter]
) -> dict[str, nn.Parameter]:
    """What is trained besides the adapters: (parts of) a linear head, and norms on request."""
    extra = {f"head.{name}": parameter for name, parameter in head.items()}
    if config.train.train_norms:
        extra |= norm_parameters(backbone.model)
    for parameter in extra.values():
        parameter.requires_grad_(True)
    return extra
