"""One number for each sample. Score: minus the squared error in units of the targets' variance;
headline figure: R^2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from edge_pslora.tasks.types import Array, Inputs, Measures, Task, mean

VALUE_LABEL = ("value",)  # the one column of a regression head


def _encode(targets: Array, labels: tuple[str, ...]) -> torch.Tensor:
    """float32 [N, 1]."""
    return torch.from_numpy(np.asarray(targets, dtype=np.float32))[:, None]


def _loss(
    values: torch.Tensor, encoded: torch.Tensor, inputs: Inputs, scale: float
) -> torch.Tensor:
    """Mean squared error of values [N, 1], in units of the targets' variance."""
    return F.mse_loss(values / scale, encoded / scale)


def _scores(values: Array, targets: Array, scale: float) -> Array:
    errors = (values.astype(np.float64) - targets.astype(np.float64)) / scale
    return np.asarray(-(errors**2))


def _measure(
    values: Array, targets: Array, inputs: Mapping[str, Array], labels: Sequence[str], scale: float
) -> Measures:
    return {"score": _scores(values[:, 0], targets, scale)}


def _figures(measures: Measures, targets: Array, scale: float) -> dict[str, float]:
    """R^2 = 1 - mean squared error / variance, and the mean squared error's root in the targets' unit."""
    error = -mean(measures["score"])
    variance = float(np.var(targets.astype(np.float64))) / scale**2
    r2 = 1.0 - error / variance if variance > 0 else -error
    return {"accuracy": r2, "rmse": float(np.sqrt(error)) * scale}


def _constant(train: Array, held: Array, scale: float) -> Array:
    """Always the mean."""
    return _scores(np.full(len(held), np.mean(train)), held, scale)


REGRESSION = Task(
    metric="r2",
    labels_in=lambda targets: set(),
    encode=_encode,
    columns=lambda encoded, count: encoded,
    loss=_loss,
    measure=_measure,
    figures=_figures,
    per_label=lambda measures, targets, labels: {},
    constant=_constant,
    own_labels=VALUE_LABEL,
)
