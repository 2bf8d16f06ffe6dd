"""L2-SP: do not go far from where the session starts (arXiv 1802.01483, Eq. 3)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from edge_pslora.compare.rule import Round, Step, summed
from edge_pslora.compare.rules.drift import Tensors, changes, head_start


def l2sp_penalty(change: Tensors, new_rows: Tensors, alpha: float, beta: float) -> torch.Tensor:
    """alpha / 2 sum |w - w_start|^2 + beta / 2 sum |rows that the start does not have|^2."""
    near = torch.stack([c.square().sum() for c in change.values()]).sum()
    new = [row.square().sum() for row in new_rows.values()]
    return alpha / 2 * near + (beta / 2 * torch.stack(new).sum() if new else 0.0)


@dataclass
class L2SP:
    """The start is the model that served so far: each session is a fine-tuning of its own. Keeps
    nothing.

    alpha, beta: 0.1 and 0.01, as in the paper's experiments.
    """

    alpha: float = 0.1
    beta: float = 0.01
    kept_bytes: int = 0
    start: Tensors = field(default_factory=dict)

    def begin(self, round: Round) -> None:
        self.start = head_start(round)

    def loss(self, round: Round, step: Step) -> torch.Tensor:
        new = {name: parameter[round.known :] for name, parameter in round.head.items()}
        return l2sp_penalty(changes(round, self.start), new, self.alpha, self.beta)

    def after_step(self, round: Round) -> None:
        return

    def end(self, round: Round) -> dict[str, torch.Tensor]:
        self.start = {}
        return summed(round)
