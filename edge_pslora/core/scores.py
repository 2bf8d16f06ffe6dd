"""What one model reaches on each sample, by kind of task: numpy only, so that a device can judge too.

N samples, C labels. A score is float64, higher is better; see tasks/ for each kind's figures.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
IDS, MASK = "input_ids", "attention_mask"


def right_labels(logits: Array, targets: Array, labels: Sequence[str]) -> Array:
    """1 where the highest of the first C logits [N, >= C] is the target's, else 0."""
    predicted = highest_labels(logits, labels)
    return np.asarray(predicted == targets.astype(np.str_)).astype(np.float64)


def highest_labels(logits: Array, labels: Sequence[str]) -> Array:
    """str [N]: the label of the highest of the first C logits [N, >= C]."""
    names = np.array(labels, dtype=np.str_)
    return np.asarray(names[logits[:, : len(names)].argmax(axis=1)])


def label_hits(wanted: Sequence[Collection[str]], labels: Sequence[str]) -> Array:
    """bool [N, C]: which of the labels each sample has; others are left out."""
    position = {label: index for index, label in enumerate(labels)}
    hits = np.zeros((len(wanted), len(labels)), dtype=np.bool_)
    for row, names in enumerate(wanted):
        for label in names:
            if label in position:
                hits[row, position[label]] = True
    return hits


def f1(given: Array, right: Array, extra: Array | int = 0) -> Array:
    """Of bool [N, C] each. extra: how many right labels the columns do not show."""
    total = given.sum(axis=1) + right.sum(axis=1) + extra
    return np.where(total == 0, 1.0, 2.0 * (given & right).sum(axis=1) / np.maximum(total, 1))


def squared_errors(values: Array, targets: Array, scale: float) -> Array:
    """Minus the squared error of values [N], in units of scale^2."""
    errors = (values.astype(np.float64) - targets.astype(np.float64)) / scale
    return np.asarray(-(errors**2))


def next_tokens(logits: Array, inputs: Mapping[str, Array]) -> tuple[Array, Array]:
    """Of logits [N, T, V]: the share of a text's tokens that are right, and how many they are."""
    wanted, counted = inputs[IDS][:, 1:], inputs[MASK][:, 1:] != 0
    right = (logits[:, :-1].argmax(axis=2) == wanted) & counted
    tokens = counted.sum(axis=1)
    return right.sum(axis=1) / np.maximum(tokens, 1), tokens
