"""The headline figure of a learner's answers, with the labels that compete."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from edge_pslora.compare.method import EVERY, Among
from edge_pslora.errors import UsageError
from edge_pslora.models.types import Backbone
from edge_pslora.tasks import TASKS
from edge_pslora.tasks.types import mean
from edge_pslora.training.batches import sorted_batches
from edge_pslora.training.classifier import with_head
from edge_pslora.training.features import run_batches
from edge_pslora.training.head import Head
from edge_pslora.training.session import SessionData

EVAL_BATCH = 64


def scores_of(
    logits: torch.Tensor, labels: Sequence[str], data: SessionData, among: Among = EVERY
) -> tuple[float, ...]:
    """For each of `among` the share of samples whose label has the highest of the logits [N, C] of the
    labels that compete.

    A label that the learner does not know cannot be answered; without any that it knows, 0.
    """
    return tuple(_score(logits, labels, data, names) for names in among)


def _score(
    logits: torch.Tensor, labels: Sequence[str], data: SessionData, among: Sequence[str] | None
) -> float:
    rows = [i for i, label in enumerate(labels) if among is None or label in among]
    if not rows:
        return 0.0
    names = [labels[i] for i in rows]
    task = TASKS["classification"]
    measured = task.measure(logits[:, rows].numpy(), np.asarray(data.targets), {}, names, 1.0)
    return mean(measured["score"])


def head_scores(
    backbone: Backbone, head: Head, data: SessionData, among: Among = EVERY
) -> tuple[float, ...]:
    """The scores of a backbone under a head; of a language model: its share of right tokens.

    Raises:
        UsageError: a kind of task whose figure is not a share.
    """
    if head.task_type not in ("classification", "language"):
        raise UsageError(
            "compare",
            expected="classes, or texts to model",
            found=f"a task of {head.task_type}",
            remedy="compare on other data",
        )
    if head.task_type == "language":
        return (_token_score(with_head(backbone, head).eval(), data),) * len(among)
    if not np.isin(np.asarray(data.targets), head.labels).any():
        return (0.0,) * len(among)  # not one can be answered: there is nothing to compute
    logits = run_batches(with_head(backbone, head).eval(), data.inputs, EVAL_BATCH)
    return scores_of(logits, head.labels, data, among)


@torch.no_grad()
def _token_score(model: nn.Module, data: SessionData) -> float:
    scores = np.zeros(len(data.targets))
    for batch in sorted_batches(data.inputs.lengths(), EVAL_BATCH):
        inputs = data.inputs.batch(batch)
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        logits = model(**inputs).numpy()
        scores[batch] = TASKS["language"].measure(logits, data.targets[batch], arrays, (), 1.0)[
            "score"
        ]
    return mean(scores)
