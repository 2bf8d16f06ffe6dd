"""The two heads behind one shape: what is kept between sessions, and the Linear that it gives."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from edge_pslora.config import HeadConfig, TaskType
from edge_pslora.core.analytic_head import (
    HeadStatistics,
    add_samples,
    fit_transport,
    solve_head,
    transport,
    with_labels,
)
from edge_pslora.tasks import TASKS, Task


@dataclass(frozen=True)
class Head:
    """weight [C, d], bias [C] (float32) of the labels, in order; statistics: analytic head only.

    target_scale: regression: standard deviation of the first session's targets, in their unit.
    """

    task_type: TaskType
    labels: tuple[str, ...]
    weight: torch.Tensor
    bias: torch.Tensor
    statistics: HeadStatistics | None = None
    target_scale: float = 1.0


def extend_labels(head: Head, new: tuple[str, ...]) -> Head:
    """Rows of zeros for labels not known yet, after the old rows, which are kept."""
    extra = tuple(label for label in new if label not in head.labels)
    return replace(
        head,
        labels=head.labels + extra,
        weight=torch.cat([head.weight, head.weight.new_zeros(len(extra), head.weight.shape[1])]),
        bias=torch.cat([head.bias, head.bias.new_zeros(len(extra))]),
        statistics=with_labels(head.statistics, head.labels + extra) if head.statistics else None,
    )


def refit(
    head: Head,
    features: torch.Tensor,
    targets: torch.Tensor,
    config: HeadConfig,
    old_features: torch.Tensor | None = None,
) -> Head:
    """An analytic head with the session's samples added.

    features [N, d]: of the model that will serve. old_features [N, d]: the same samples under the
    old model; the old statistics are then transported into the new feature space first.
    """
    assert head.statistics is not None
    statistics = head.statistics
    if config.transport and old_features is not None and statistics.samples > 0:
        statistics = transport(
            statistics, fit_transport(old_features, features, config.transport_ridge)
        )
    folds = cross_fit(replace(head, statistics=statistics), features, targets, config)
    task = TASKS[head.task_type]
    statistics = add_samples(statistics, features, task.columns(targets, len(head.labels)))
    weight, bias = solve_head(statistics, config.ridge)
    return replace(
        head,
        weight=weight * folds.scale,
        bias=(bias - task.threshold) * folds.scale,
        statistics=statistics,
    )


@dataclass(frozen=True)
class CrossFit:
    """K heads, each solved without one fold of the session's samples.

    A head that has seen a sample fits it, so its loss there says nothing and has no gradient; the
    head that has not seen it says how well the features serve. weight [K, C, d], bias [K, C],
    fold int64 [N]: the head for each sample. scale: factor on the scores that calibrates softmax,
    already in weight and bias.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    fold: torch.Tensor
    scale: float

    def logits(self, features: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        """Logits [B, C] of features [B, d] of the samples int64 [B], each by the head of its fold."""
        fold = self.fold[samples]
        every = torch.einsum("bd,kcd->bkc", features, self.weight) + self.bias
        return every[torch.arange(len(fold)), fold]


def cross_fit(
    head: Head, features: torch.Tensor, targets: torch.Tensor, config: HeadConfig
) -> CrossFit:
    """Heads on the old statistics and K - 1 folds of the new samples, K = config.folds.

    features [N, d]; targets as the task encodes them. Sample i is in fold i mod K.
    """
    assert head.statistics is not None
    fold = torch.arange(len(features)) % max(1, min(config.folds, len(features)))
    task = TASKS[head.task_type]
    columns = task.columns(targets, len(head.labels))
    solved = [
        solve_head(
            add_samples(head.statistics, features[fold != k], columns[fold != k]), config.ridge
        )
        for k in range(int(fold.max()) + 1)
    ]
    weight = torch.stack([w for w, _ in solved])
    bias = torch.stack([b for _, b in solved]) - task.threshold
    heads = CrossFit(weight, bias, fold, 1.0)
    if head.task_type == "regression":
        return heads
    scores = heads.logits(features, torch.arange(len(features)))
    scale = fit_logit_scale(scores, targets, task)
    return CrossFit(weight * scale, bias * scale, fold, scale)


def fit_logit_scale(scores: torch.Tensor, targets: torch.Tensor, task: Task) -> float:
    """The factor on ridge scores [N, C] that minimises the task's loss: softmax then means something.

    Searched on a grid of a twentieth of a decade between 1 and 100; the order of classes is unchanged.
    """
    scales = torch.logspace(0, 2, 41)
    losses = torch.stack([task.loss(scores * scale, targets, {}, 1.0) for scale in scales])
    return float(scales[losses.argmin()])
