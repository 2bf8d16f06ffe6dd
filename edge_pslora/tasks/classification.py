"""One label of a set for each sample. Score: 1 right, 0 wrong; headline figure: accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from edge_pslora.core.scores import highest_labels
from edge_pslora.tasks.types import Array, Inputs, Loss, Measures, Task, half_the_gap, mean


def _labels_in(targets: Array) -> set[str]:
    return {str(target) for target in targets}


def _encode(targets: Array, labels: tuple[str, ...]) -> torch.Tensor:
    """int64 [N], positions in `labels`; -1 = unknown."""
    position = {label: index for index, label in enumerate(labels)}
    return torch.tensor([position.get(str(t), -1) for t in targets], dtype=torch.int64)


def _loss(
    logits: torch.Tensor, encoded: torch.Tensor, inputs: Inputs, scale: float
) -> torch.Tensor:
    """Mean cross-entropy of logits [N, C]."""
    return F.cross_entropy(logits, encoded)


def _smoothed(share: float) -> Loss:
    """Szegedy et al. 2016: the right label has 1 - share of the mass, all labels the rest alike."""

    def loss(
        logits: torch.Tensor, encoded: torch.Tensor, inputs: Inputs, scale: float
    ) -> torch.Tensor:
        return F.cross_entropy(logits, encoded, label_smoothing=share)

    return loss


def _measure(
    logits: Array, targets: Array, inputs: Mapping[str, Array], labels: Sequence[str], scale: float
) -> Measures:
    """score [N]; answer [N]: the label; sure float64 [N]: the probability of the right one."""
    predicted, right = highest_labels(logits, labels), targets.astype(np.str_)
    score = (predicted == right).astype(np.float64)
    return {"score": score, "answer": predicted, "sure": _sure(logits, right, labels)}


def _sure(logits: Array, right: Array, labels: Sequence[str]) -> Array:
    """float64 [N]: softmax over the labels that compete, 0 for one that does not."""
    competing = logits[:, : len(labels)].astype(np.float64)
    chances = np.exp(competing - competing.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    is_right = right[:, None] == np.array(labels, np.str_)
    return np.asarray((chances * is_right).sum(axis=1))


def _figures(measures: Measures, targets: Array, scale: float) -> dict[str, float]:
    return {"accuracy": mean(measures["score"])}


def _per_label(measures: Measures, targets: Array, labels: Sequence[str]) -> dict[str, float]:
    names = targets.astype(np.str_)
    return {str(label): mean(measures["score"][names == label]) for label in np.unique(names)}


def _constant(train: Array, held: Array, scale: float) -> Array:
    """Always the most frequent label."""
    labels, counts = np.unique(train.astype(np.str_), return_counts=True)
    right = held.astype(np.str_) == labels[counts.argmax()]
    return np.asarray(right.astype(np.float64))


def _answers(measures: Measures, targets: Array) -> tuple[Array, Array]:
    right = targets.astype(np.str_)
    names = np.unique(np.concatenate([measures["answer"], right]))
    answered = (measures["answer"][:, None] == names).astype(np.float64)
    return answered, (right[:, None] == names).astype(np.float64)


CLASSIFICATION = Task(
    metric="accuracy",
    labels_in=_labels_in,
    encode=_encode,
    columns=F.one_hot,
    loss=_loss,
    smoothed=_smoothed,
    measure=_measure,
    figures=_figures,
    per_label=_per_label,
    constant=_constant,
    answers=_answers,
    predict=lambda logits: np.asarray(logits.argmax(axis=1)),
    margin=lambda logits, chosen: half_the_gap(logits, chosen, 1),
)
