"""Early stopping: the loss on samples that are not learned from, epoch after epoch, and the best state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from edge_pslora.models.types import EncodedInputs
from edge_pslora.training.batches import Indices, spread
from edge_pslora.training.micro import ComputeLoss, parts

SHARE = 0.1  # of a session's samples that are watched
MOST = 500
LEAST = 10  # fewer say nothing
PATIENCE = 2  # epochs without a lower loss after which training ends


@dataclass
class Watch:
    """losses: after each epoch. best: the parameters' values after the one with the least, in order."""

    losses: list[float] = field(default_factory=list)
    best: list[torch.Tensor] = field(default_factory=list)

    def add(self, loss: float, parameters: Sequence[nn.Parameter]) -> None:
        self.losses.append(loss)
        if self.best_epoch == len(self.losses):
            self.best = [parameter.detach().clone() for parameter in parameters]

    @property
    def best_epoch(self) -> int:
        """Counted from 1; 0 before the first."""
        finite = [loss if math.isfinite(loss) else math.inf for loss in self.losses]
        return finite.index(min(finite)) + 1 if finite else 0

    @property
    def over(self) -> bool:
        return len(self.losses) - self.best_epoch >= PATIENCE

    def finish(self, parameters: Sequence[nn.Parameter]) -> str:
        """Goes back to the best state where a later one is worse, and says so; else ""."""
        if self.best_epoch in (0, len(self.losses)):
            return ""
        with torch.no_grad():
            for parameter, value in zip(parameters, self.best, strict=True):
                parameter.copy_(value)
        least, last = self.losses[self.best_epoch - 1], self.losses[-1]
        return (
            f"early stopping: the state after epoch {self.best_epoch} of {len(self.losses)} was kept, "
            f"with a loss of {least:.4g} on samples that were not learned from ({last:.4g} at the end)"
        )


def watched_samples(count: int) -> Indices:
    """Positions of a tenth of `count` samples, evenly spread and at most MOST; none of too few.

    They come from the session's own samples and not from the holdout: that one decides about
    promotion, and a state chosen by it would look better than it is.
    """
    size = min(MOST, int(count * SHARE))
    return spread(count, size if size >= LEAST else 0)


@torch.no_grad()
def watch_loss(
    compute_loss: ComputeLoss,
    inputs: EncodedInputs,
    samples: Indices,
    size: int,
    terms: Indices | None,
) -> float:
    """The mean loss of the samples, `size` at a time."""
    ordered = samples[inputs.lengths()[samples].argsort(kind="stable")]
    return sum(
        float(compute_loss(inputs.batch(part), part)) * share
        for part, share in parts(ordered, size, terms)
    )
