"""MagMax: of the running sums of all sessions, at each entry the largest (arXiv 2407.06322, section 4).

Sessions go on from each other, theta_t from theta_{t-1}; the task vector is R_t = theta_t - theta_0 =
D_1 + ... + D_t, and W0 + lambda R_max is deployed, R_max of the R_1 ... R_T the one of the largest
magnitude at each entry. The maximum is a fold, so that one matrix of sums is kept and not T vectors.
lambda: 1 (chosen by validation in the paper). Ties keep the older here, the newer in the authors' code.
This is the product's `cumulative`.
"""

from __future__ import annotations

import torch

from edge_pslora.compare.rule import Round, Step, updates
from edge_pslora.core.merge import merge_step


def larger(kept: torch.Tensor, running: torch.Tensor) -> torch.Tensor:
    """Of both, at each entry the one of the larger magnitude; of equals `kept`."""
    return torch.from_numpy(merge_step("cumulative", kept.numpy(), running.numpy(), 1)).float()


class MagMax:
    """The rule. kept: R_t of every target, and where lambda is not 1 the maximum itself."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.running: dict[str, torch.Tensor] = {}
        self.largest: dict[str, torch.Tensor] = {}

    def begin(self, round: Round) -> None:
        if not self.running:
            self.running = {name: torch.zeros_like(past) for name, past in round.past.items()}
            self.largest = dict(self.running)
        round.start_from(self.running)

    def loss(self, round: Round, step: Step) -> torch.Tensor | None:
        return None

    def after_step(self, round: Round) -> None:
        pass

    def end(self, round: Round) -> dict[str, torch.Tensor]:
        for name, delta in updates(round).items():
            self.running[name] = self.running[name] + delta
            self.largest[name] = larger(self.largest[name], self.running[name])
        return {name: self.scale * largest for name, largest in self.largest.items()}

    @property
    def kept_bytes(self) -> int:
        kept = [self.running] if self.scale == 1.0 else [self.running, self.largest]
        return sum(4 * t.numel() for matrices in kept for t in matrices.values())
