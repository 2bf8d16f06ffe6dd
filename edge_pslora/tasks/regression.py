"""One number for each sample. Score: minus the squared error in units of the targets' variance;
headline figure: R^2."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from edge_pslora.core.scores import squared_errors
from edge_pslora.tasks.types import Array, Inputs, Measures, Task, mean

VALUE_LABEL = ("value",)  # the one column of a regression head


@dataclass(frozen=True)
class ValueMoments:
    """All values seen so far: how many, their mean, and the sum of squared deviations from it.

    One session's values may hardly vary where those of all sessions do (one patient's, of many): the
    unit in which errors count is the spread of all.
    """

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def scale(self) -> float:
        """Their standard deviation in their own unit; 1 where they do not vary."""
        return math.sqrt(self.squares / self.count) if self.squares > 0 else 1.0

    def with_values(self, values: Array) -> ValueMoments:
        """These and more values (Chan, Golub, LeVeque 1979: the update of pairs)."""
        more = values.astype(np.float64)
        if len(more) == 0:
            return self
        count = self.count + len(more)
        shift = float(more.mean()) - self.mean
        squares = float(((more - more.mean()) ** 2).sum())
        return ValueMoments(
            count,
            self.mean + shift * len(more) / count,
            self.squares + squares + shift**2 * self.count * len(more) / count,
        )


def _encode(targets: Array, labels: tuple[str, ...]) -> torch.Tensor:
    """float32 [N, 1]."""
    return torch.from_numpy(np.asarray(targets, dtype=np.float32))[:, None]


def _loss(
    values: torch.Tensor, encoded: torch.Tensor, inputs: Inputs, scale: float
) -> torch.Tensor:
    """Mean squared error of values [N, 1], in units of the targets' variance."""
    return F.mse_loss(values / scale, encoded / scale)


def _measure(
    values: Array, targets: Array, inputs: Mapping[str, Array], labels: Sequence[str], scale: float
) -> Measures:
    return {"score": squared_errors(values[:, 0], targets, scale)}


def _figures(measures: Measures, targets: Array, scale: float) -> dict[str, float]:
    """R^2 = 1 - mean squared error / variance, and the mean squared error's root in the targets' unit."""
    error = -mean(measures["score"])
    variance = float(np.var(targets.astype(np.float64))) / scale**2
    r2 = 1.0 - error / variance if variance > 0 else -error
    return {"accuracy": r2, "rmse": float(np.sqrt(error)) * scale}


def _constant(train: Array, held: Array, scale: float) -> Array:
    """Always the mean."""
    return squared_errors(np.full(len(held), np.mean(train)), held, scale)


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
