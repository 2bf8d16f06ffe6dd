"""The loss of one session and the samples it is taken over, as settings, kind of task and plan say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from edge_pslora.config import AdaptConfig
from edge_pslora.errors import UsageError
from edge_pslora.models.types import Backbone, EncodedInputs
from edge_pslora.tasks import Task
from edge_pslora.tasks.types import Inputs, Loss
from edge_pslora.training.batches import Indices
from edge_pslora.training.head_session import HeadSession
from edge_pslora.training.inject import Adapter
from edge_pslora.training.loop import Sampling
from edge_pslora.training.plan import TrainingPlan
from edge_pslora.training.token_loss import LARGE, chunked_token_loss, states_out
from edge_pslora.training.watching import watched_samples

# features [B, ...] and logits [B, C] of samples int64 [B], their inputs, the targets' scale -> a scalar
AnsweredLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Inputs, float], torch.Tensor]


def session_sampling(
    task: Task, inputs: EncodedInputs, wanted: torch.Tensor, config: AdaptConfig, plan: TrainingPlan
) -> Sampling:
    """wanted: the targets as the task encodes them.

    Raises:
        UsageError: classes are to be drawn evenly, or labels smoothed, where there are none.
    """
    for asked, flag in (
        (config.train.balanced_sampling, "--balanced-sampling"),
        (config.train.label_smoothing > 0, "--label-smoothing"),
    ):
        if asked and task.smoothed is None:
            raise UsageError(
                flag,
                expected="samples with one label each, which it is for",
                found="another kind of task",
                remedy="leave it out",
            )
    return Sampling(
        micro_batch=plan.micro_batch,
        terms=np.asarray(task.terms(inputs.lengths()), np.int64),
        classes=wanted.numpy() if config.train.balanced_sampling else None,
        watched=watched_samples(len(inputs)) if config.train.early_stop else _none(),
    )


@contextmanager
def session_loss(
    task: Task,
    backbone: Backbone,
    adapters: Mapping[str, Adapter],
    inputs: EncodedInputs,
    config: AdaptConfig,
    plan: TrainingPlan,
    large: int = LARGE,
) -> Iterator[Loss]:
    """The loss for outputs of the backbone within the block, and of heads on them.

    large: bytes of one pass' outputs from which on those of a language model are not made at once.
    """
    if task.has_head:
        share = config.train.label_smoothing
        yield task.smoothed(share) if task.smoothed is not None and share > 0 else task.loss
        return
    longest = int(inputs.lengths().max(initial=1))
    few = inputs.batch(np.arange(min(2, len(inputs)), dtype=np.int64))
    with torch.no_grad():
        outputs = backbone(**few)
    if plan.micro_batch * longest * outputs.shape[-1] * 4 < large:
        yield task.loss
        return
    with states_out(backbone, adapters, few) as layer:
        if layer is None:
            yield task.loss
            return
        linear = layer

        def loss(
            states: torch.Tensor, encoded: torch.Tensor, inputs: Inputs, scale: float
        ) -> torch.Tensor:
            return chunked_token_loss(states, linear, inputs)

        yield loss


def answered_loss(
    in_session: HeadSession, loss: Loss, wanted: torch.Tensor, drift_weight: float
) -> AnsweredLoss:
    """The loss of logits among the labels that compete, and of how far their features have moved.

    wanted: the targets as the task encodes them."""
    competing, drift = in_session.competing.labels, in_session.drift
    answers = wanted if competing is None else torch.searchsorted(competing, wanted)

    def compute(
        features: torch.Tensor,
        logits: torch.Tensor,
        samples: torch.Tensor,
        inputs: Inputs,
        scale: float,
    ) -> torch.Tensor:
        if competing is not None:
            logits = logits[:, competing]
        value = loss(logits, answers[samples], inputs, scale)
        if drift is None or drift_weight == 0:
            return value
        return value + drift_weight * drift(features, samples)

    return compute


def _none() -> Indices:
    return np.zeros(0, np.int64)
