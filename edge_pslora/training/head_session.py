"""What each kind of head does in a session: logits to train through, and the head that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from edge_pslora.config import AdaptConfig, HeadConfig
from edge_pslora.core.analytic_head import HeadStatistics, empty_statistics
from edge_pslora.core.feature_drift import feature_drift, feature_variance
from edge_pslora.models.types import LoadedModel
from edge_pslora.tasks import TASKS
from edge_pslora.training.batches import spread
from edge_pslora.training.classifier import linear_head
from edge_pslora.training.competing import ALL_COMPETE, Competing, choose_competing
from edge_pslora.training.head import CrossFit, Head, cross_fit, fit_logit_scale, refit
from edge_pslora.training.head_rows import (
    RowPenalty,
    joined,
    merge_rows,
    past_of,
    protects_rows,
    row_penalty,
    starting_rows,
)
from edge_pslora.training.label_text import label_texts, named_here, training_logits

Features = Callable[[str], torch.Tensor]  # name of the stage -> features [N, d] of the session
Logits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


MOST_UNSEEN = 1000  # training samples whose out-of-fold logits are kept for the gate
MOST_ALONE = 200  # of these, whose logits by the session alone are: all of a session that is small


@dataclass(frozen=True)
class Alone:
    """Logits [M, C] of the samples `rows` int64 [M] of Unseen.rows, by heads that know nothing but the
    others of them: whether labels follow from inputs, where the past drowns a few samples.

    features [M, d]: theirs. past: statistics of all earlier features, among which they may be new.
    """

    rows: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    features: torch.Tensor
    past: HeadStatistics


@dataclass(frozen=True)
class Unseen:
    """Logits [M, C] of training samples `rows` int64 [M], by a head that has not seen them and the
    features that served so far: what the session's labels can be learned to, without any optimism.

    alone: what the session says without the past; None in a first session, where it is the same, and
    for tasks whose answers are not right or wrong.
    """

    rows: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    alone: Alone | None


@dataclass(frozen=True)
class HeadSession:
    """A head in one session.

    logits: features [B, d] and their samples int64 [B] -> logits [B, C]. finish: asked once, after
    the merge. parameters: what of the head is trained by SGD. rows: the stability loss on old rows.
    zero_shot: accuracy on the session's samples before any training; label-text only.
    unseen: analytic head only. competing: the labels that a sample is trained against. drift: features
    [B, d] of samples int64 [B] -> how far they have moved (core.feature_drift), from the second session on.
    """

    logits: Logits
    finish: Callable[[], Head]
    parameters: Mapping[str, nn.Parameter] = field(default_factory=dict)
    rows: RowPenalty | None = None
    zero_shot: float | None = None
    unseen: Unseen | None = None
    competing: Competing = ALL_COMPETE
    drift: Logits | None = None


def begin_head(
    model: LoadedModel,
    old: Head,
    head: Head,
    targets: torch.Tensor,
    config: AdaptConfig,
    features: Features,
    generator: torch.Generator,
) -> HeadSession:
    """Called with the weights that served so far; `finish` with those that will.

    old: the head of the earlier sessions; head: the same with the session's labels.
    targets: of the session's samples, as the task encodes them.
    """
    if not TASKS[head.task_type].has_head:
        return HeadSession(lambda outputs, samples: outputs, lambda: head)
    if head.kind == "analytic":
        return _analytic(head, targets, config, features)
    if head.kind == "label-text":
        return _label_text(model, head, targets, config, features)
    return _linear(model, old, head, config, generator)


def _analytic(
    head: Head, targets: torch.Tensor, config: AdaptConfig, features: Features
) -> HeadSession:
    before = features("features before")
    folds = cross_fit(head, before, targets, config.head)
    unseen = _unseen(head, folds, before, targets, config.head)
    return HeadSession(
        folds.logits,
        lambda: refit(head, features("features after"), targets, config.head, before),
        unseen=unseen,
        competing=_competing(head, unseen, targets, config.head),
        drift=_drift(head, before),
    )


def _competing(head: Head, unseen: Unseen, targets: torch.Tensor, config: HeadConfig) -> Competing:
    if head.task_type != "classification":
        return ALL_COMPETE
    logits, wanted = torch.from_numpy(unseen.logits), targets[torch.from_numpy(unseen.rows)]
    return choose_competing(config.compete, len(head.labels), targets, logits, wanted)


def _drift(head: Head, before: torch.Tensor) -> Logits | None:
    past = head.statistics
    assert past is not None
    if past.samples == 0:
        return None
    variance = feature_variance(past)
    return lambda features, samples: feature_drift(features, before[samples], variance)


def _unseen(
    head: Head,
    folds: CrossFit,
    features: torch.Tensor,
    targets: torch.Tensor,
    config: HeadConfig,
) -> Unseen:
    """features [N, d]: those that served so far."""
    rows = spread(len(features), MOST_UNSEEN)
    samples = torch.from_numpy(rows)
    logits = folds.logits(features[samples], samples).numpy()
    alone = _alone(head, features[samples], targets[samples], config)
    return Unseen(rows, logits, alone)


def _alone(
    head: Head, features: torch.Tensor, targets: torch.Tensor, config: HeadConfig
) -> Alone | None:
    past = head.statistics
    assert past is not None
    if past.samples == 0 or TASKS[head.task_type].answers is None:
        return None
    rows = spread(len(features), MOST_ALONE)
    samples = torch.from_numpy(rows)
    some = features[samples]
    nothing = replace(head, statistics=empty_statistics(features.shape[1], head.labels))
    heads = cross_fit(nothing, some, targets[samples], config)
    return Alone(rows, heads.logits(some, torch.arange(len(some))).numpy(), some, past)


def _label_text(
    model: LoadedModel, head: Head, targets: torch.Tensor, config: AdaptConfig, features: Features
) -> HeadSession:
    assert head.template is not None
    template = config.head.label_template or head.template
    texts = label_texts(model, head.labels, template)
    batch = config.train.batch_size
    count = len(head.labels)
    among = named_here(targets)
    served = texts.embeddings(model.backbone, batch)
    guess = F.normalize(features("features before")) @ served.T

    def finish() -> Head:
        names = texts.embeddings(model.backbone, batch)
        cosines = F.normalize(features("features after")) @ names.T
        weight = names * fit_logit_scale(cosines, targets, TASKS[head.task_type])
        return replace(head, weight=weight, bias=torch.zeros(count), template=template)

    return HeadSession(
        lambda batch_features, samples: training_logits(
            model.backbone, texts, among, batch_features, served
        ),
        finish,
        zero_shot=float((guess.argmax(1) == targets).double().mean()),
    )


def _linear(
    model: LoadedModel, old: Head, head: Head, config: AdaptConfig, generator: torch.Generator
) -> HeadSession:
    linear = linear_head(head.weight, head.bias)
    # a head that is all zeros has learnt nothing yet
    known = len(old.labels) if bool(old.weight.any()) else 0
    _start_new_rows(linear, known, generator)
    # a classifier that came without a bias stays without
    has_bias = model.base_head is None or model.base_head.has_bias
    names = ("weight", "bias") if has_bias else ("weight",)
    parameters = {name: linear.get_parameter(name) for name in names}

    def trained() -> Head:
        weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
        return replace(head, weight=weight, bias=bias, past=None)

    if not protects_rows(config):
        return HeadSession(lambda f, samples: linear(f), trained, parameters)
    served = joined(old.weight[:known], old.bias[:known])
    past = past_of(served, old.past)
    start = starting_rows(served, past, config.merge)
    with torch.no_grad():
        linear.weight[:known] = start[:, :-1]
        linear.bias[:known] = start[:, -1]

    def merged() -> Head:
        rows, after = merge_rows(
            config.merge, served, start, joined(linear.weight, linear.bias), past
        )
        weight, bias = rows[:, :-1].contiguous(), rows[:, -1].contiguous()
        return replace(head, weight=weight, bias=bias, past=after)

    bias = linear.bias if has_bias else None
    rows = row_penalty(linear.weight, bias, start, past) if known else None
    return HeadSession(lambda f, samples: linear(f), merged, parameters, rows)


def _start_new_rows(head: nn.Linear, known: int, generator: torch.Generator) -> None:
    """Small random rows for new classes: at zero, the features would get no gradient."""
    bound = head.in_features**-0.5
    with torch.no_grad():
        head.weight[known:].uniform_(-bound, bound, generator=generator)
