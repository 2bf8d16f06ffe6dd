"""Any number of labels for each sample; a label is given where its logit is above 0.

Score: F1 = 2 |given and right| / (|given| + |right|) of the sample, 1 where both sets are empty;
headline figure: its mean (Tsoumakas et al. 2010, "Mining Multi-label Data", example-based F1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from edge_pslora.core.scores import f1, label_hits
from edge_pslora.data.types import split_labels
from edge_pslora.tasks.types import Array, Inputs, Measures, Task, mean


def _labels_in(targets: Array) -> set[str]:
    return {label for target in targets for label in split_labels(str(target))}


def _hits(targets: Array, labels: Sequence[str]) -> Array:
    """bool [N, C]: which of the labels each sample has; others are left out."""
    return label_hits([split_labels(str(target)) for target in targets], labels)


def _encode(targets: Array, labels: tuple[str, ...]) -> torch.Tensor:
    """float32 [N, C] of 0 and 1."""
    return torch.from_numpy(_hits(targets, labels).astype(np.float32))


def _loss(
    logits: torch.Tensor, encoded: torch.Tensor, inputs: Inputs, scale: float
) -> torch.Tensor:
    """Binary cross-entropy of logits [N, C], mean over samples and labels."""
    return F.binary_cross_entropy_with_logits(logits, encoded.to(logits.dtype))


def _measure(
    logits: Array, targets: Array, inputs: Mapping[str, Array], labels: Sequence[str], scale: float
) -> Measures:
    """score [N]; given, right: bool [N, C]."""
    given = logits[:, : len(labels)] > 0
    right = _hits(targets, labels)
    counts = np.array([len(split_labels(str(target))) for target in targets], dtype=np.int64)
    unknown = counts - right.sum(axis=1)
    exact = (given == right).all(axis=1) & (unknown == 0)
    return {
        "score": f1(given, right, unknown),
        "given": given,
        "right": right,
        "exact": exact.astype(np.float64),
    }


def _figures(measures: Measures, targets: Array, scale: float) -> dict[str, float]:
    return {"accuracy": mean(measures["score"]), "exact_match": mean(measures["exact"])}


def _per_label(measures: Measures, targets: Array, labels: Sequence[str]) -> dict[str, float]:
    """F1 of each label that the model knows and that occurs."""
    given, right = measures["given"], measures["right"]
    reached = f1(given.T, right.T)
    return {label: float(reached[i]) for i, label in enumerate(labels) if right[:, i].any()}


def _constant(train: Array, held: Array, scale: float) -> Array:
    """Always the most frequent set of labels."""
    labels = tuple(sorted(_labels_in(np.concatenate([train, held]))))
    answer, _ = Counter(str(target) for target in train).most_common(1)[0]
    given = np.repeat(_hits(np.array([answer]), labels), len(held), axis=0)
    return f1(given, _hits(held, labels))


MULTILABEL = Task(
    metric="f1",
    labels_in=_labels_in,
    encode=_encode,
    columns=lambda encoded, count: encoded,
    loss=_loss,
    measure=_measure,
    figures=_figures,
    per_label=_per_label,
    constant=_constant,
    answers=lambda measures, targets: (
        measures["given"].astype(np.float64),
        measures["right"].astype(np.float64),
    ),
    predict=lambda logits: np.asarray(logits > 0),
    margin=lambda logits, given: np.where((logits > 0) == given, 0.0, np.abs(logits)),
    threshold=0.5,
)
