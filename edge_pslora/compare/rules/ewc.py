"""EWC, online: weights that the old tasks' likelihood curves along are held (arXiv 1612.00796, Eq. 3).

One Fisher information for all earlier sessions, as arXiv 1805.06370, Eq. 9: F*_t = gamma F*_{t-1} +
F_t. F_t is the diagonal of the empirical Fisher: the mean over samples of the squared gradient of log
p(y | x), y the sample's own label.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from edge_pslora.compare.rule import Round, Step, summed
from edge_pslora.compare.rules.drift import (
    Tensors,
    changes,
    head_start,
    nbytes,
    quadratic,
    weight_gradients,
    weights_with_gradients,
)
from edge_pslora.training.batches import spread


def ewc_penalty(fisher: Tensors, change: Tensors, strength: float) -> torch.Tensor:
    """lambda / 2 sum_k F_k (theta_k - theta*_k)^2."""
    return strength / 2 * quadratic(fisher, change)


def online_fisher(old: Tensors, new: Tensors, gamma: float) -> Tensors:
    """gamma F*_{t-1} + F_t; rows of labels that the old one did not know count from now on."""
    return {
        name: gamma * _as_long(old[name], f) + f if name in old else f for name, f in new.items()
    }


def _as_long(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    missing = len(like) - len(rows)
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows


def empirical_fisher(round: Round, samples: int) -> Tensors:
    """Mean squared gradients of -log p(y | x), one sample at a time, at the weights as they are now."""
    rows = spread(len(round.data.targets), samples)
    sums: Tensors = {}
    with weights_with_gradients(round):
        for row in rows:
            for parameter in (*round.weights.values(), *round.head.values()):
                parameter.grad = None
            index = np.array([row], dtype=np.int64)
            inputs, sample = round.data.inputs.batch(index), torch.from_numpy(index)
            logits = round.logits(round.model.backbone(**inputs), sample)
            round.task_loss(logits, round.wanted[sample], inputs).backward()  # type: ignore[no-untyped-call]
            found = weight_gradients(round)
            for name, parameter in round.head.items():
                assert parameter.grad is not None
                found[f"head.{name}"] = parameter.grad
            for name, gradient in found.items():
                square = gradient.square() / len(rows)
                sums[name] = sums[name].add_(square) if name in sums else square
    for parameter in round.head.values():
        parameter.grad = None
    return sums


@dataclass
class EWC:
    """strength: lambda, chosen by validation (benchmarks/LOG.md). samples: of a session's, for the Fisher.
    gamma: 1, nothing fades."""

    strength: float = 10.0
    gamma: float = 1.0
    samples: int = 64
    fisher: Tensors = field(default_factory=dict)
    start: Tensors = field(default_factory=dict)

    def begin(self, round: Round) -> None:
        self.start = head_start(round)

    def loss(self, round: Round, step: Step) -> torch.Tensor | None:
        if not self.fisher:
            return None
        return ewc_penalty(self.fisher, changes(round, self.start), self.strength)

    def after_step(self, round: Round) -> None:
        return

    def end(self, round: Round) -> dict[str, torch.Tensor]:
        self.fisher = online_fisher(self.fisher, empirical_fisher(round, self.samples), self.gamma)
        self.start = {}
        return summed(round)

    @property
    def kept_bytes(self) -> int:
        return nbytes(self.fisher)
