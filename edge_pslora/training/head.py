"""The heads behind one shape: what is kept between sessions, and the Linear that it gives."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from edge_pslora.config import HeadConfig, HeadKind, TaskType
from edge_pslora.core.analytic_head import (
    HeadStatistics,
    add_samples,
    fit_transport,
    solve_head,
    transport,
    with_labels,
)
from edge_pslora.core.fold_heads import fold_heads
from edge_pslora.core.ridge_path import leave_one_out, session_path
from edge_pslora.tasks import TASKS, Task
from edge_pslora.tasks.regression import ValueMoments
from edge_pslora.training.head_rows import RowPast

# Squared errors of 0/1 columns are flat in the ridge, and shrinking costs rare classes answers that
# the squares do not see: the smallest ridge within a twentieth of the least error (docs/HEADS.md).
CLASS_SLACK = 0.05


@dataclass(frozen=True)
class Head:
    """weight [C, d], bias [C] (float32) of the labels, in order.

    statistics, ridge (the one last chosen, 0 before): analytic head only. past: a linear head whose
    rows are protected. template: label-text head only, which reads features of norm 1.
    values: regression: of all targets so far; they set the unit of errors, `target_scale`.
    """

    task_type: TaskType
    labels: tuple[str, ...]
    weight: torch.Tensor
    bias: torch.Tensor
    statistics: HeadStatistics | None = None
    values: ValueMoments = field(default_factory=ValueMoments)
    ridge: float = 0.0
    past: RowPast | None = None
    template: str | None = None

    @property
    def kind(self) -> HeadKind:
        if self.template is not None:
            return "label-text"
        return "linear" if self.statistics is None else "analytic"

    @property
    def target_scale(self) -> float:
        return self.values.scale

    @property
    def normalize(self) -> bool:
        """Whether features are scaled to norm 1 before the Linear."""
        return self.template is not None


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


def will_transport(head: Head, config: HeadConfig) -> bool:
    """Whether old statistics are moved into the new features: both features must then be of one precision,
    for every difference between them counts as drift."""
    old = head.statistics
    return config.transport and old is not None and old.samples > 0


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
    if old_features is not None and will_transport(head, config):
        statistics = transport(
            statistics, fit_transport(old_features, features, config.transport_ridge)
        )
    before = replace(head, statistics=statistics)
    after = _with_samples(before, features, targets, config)
    ridge = config.ridge or _chosen_ridge(after, head, features, targets, config)
    folds = cross_fit(before, features, targets, config, ridge, after)
    weight, bias = solve_head(after, ridge)
    return replace(
        head,
        weight=weight * folds.scale,
        bias=(bias - TASKS[head.task_type].threshold) * folds.scale,
        statistics=after,
        ridge=ridge,
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
    head: Head,
    features: torch.Tensor,
    targets: torch.Tensor,
    config: HeadConfig,
    ridge: float | None = None,
    total: HeadStatistics | None = None,
) -> CrossFit:
    """Heads on the old statistics and K - 1 folds of the new samples, K = config.folds.

    features [N, d]; targets as the task encodes them. Sample i is in fold i mod K. ridge: None: as
    configured, or chosen by leave-one-out on these samples. total: the head's statistics with all of
    them, where they are known.
    """
    assert head.statistics is not None
    if total is None:
        total = _with_samples(head, features, targets, config)
    if ridge is None:
        ridge = config.ridge or _chosen_ridge(total, head, features, targets, config)
    fold = torch.arange(len(features)) % max(1, min(config.folds, len(features)))
    solved = fold_heads(
        head.statistics,
        total,
        features,
        TASKS[head.task_type].columns(targets, len(head.labels)),
        fold,
        ridge,
        lambda columns: sample_weights(columns, head, config),
    )
    task = TASKS[head.task_type]
    weight = torch.stack([w for w, _ in solved])
    bias = torch.stack([b for _, b in solved]) - task.threshold
    heads = CrossFit(weight, bias, fold, 1.0)
    if head.task_type == "regression":
        return heads
    scores = heads.logits(features, torch.arange(len(features)))
    scale = fit_logit_scale(scores, targets, task)
    return CrossFit(weight * scale, bias * scale, fold, scale)


def _with_samples(
    head: Head, features: torch.Tensor, targets: torch.Tensor, config: HeadConfig
) -> HeadStatistics:
    assert head.statistics is not None
    columns = TASKS[head.task_type].columns(targets, len(head.labels))
    return add_samples(head.statistics, features, columns, sample_weights(columns, head, config))


def _chosen_ridge(
    statistics: HeadStatistics,
    head: Head,
    features: torch.Tensor,
    targets: torch.Tensor,
    config: HeadConfig,
) -> float:
    """By leave-one-out; statistics: with the session's samples, whose features [N, d] these are."""
    columns = TASKS[head.task_type].columns(targets, len(head.labels))
    weights = sample_weights(columns, head, config)
    found = leave_one_out(session_path(statistics, features, weights), features, columns, weights)
    return found.best(0.0 if head.task_type == "regression" else CLASS_SLACK)


def sample_weights(columns: torch.Tensor, head: Head, config: HeadConfig) -> torch.Tensor | None:
    """float64 [N] that add up to N; None: 1 each. columns [N, C]: 0/1 rows, or values.

    Balanced: the samples of each class of the session weigh the same together; one with several labels
    has the mean of their weights, those without any label are a class of their own.
    """
    if config.class_balance == "none" or head.task_type == "regression" or len(columns) == 0:
        return None
    member = columns.double()
    member = torch.cat([member, (member.sum(1, keepdim=True) == 0).double()], dim=1)
    share = 1 / member.sum(0).clamp_min(1.0)  # [C + 1]
    weights = member @ share / member.sum(1)
    return weights * (len(columns) / weights.sum())


def fit_logit_scale(scores: torch.Tensor, targets: torch.Tensor, task: Task) -> float:
    """The factor on ridge scores [N, C] that minimises the task's loss: softmax then means something.

    Searched on a grid of a twentieth of a decade between 1 and 100; the order of classes is unchanged.
    """
    scales = torch.logspace(0, 2, 41)
    losses = torch.stack([task.loss(scores * scale, targets, {}, 1.0) for scale in scales])
    return float(scales[losses.argmin()])
