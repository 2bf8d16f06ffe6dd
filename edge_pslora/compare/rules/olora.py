"""O-LoRA: the new A is kept orthogonal to every earlier A (arXiv 2310.14152, Eq. 7 and 8).

L = task loss + lambda_1 sum_i sum_jk |O_i,jk|^p with O_i = A_i A_t^T, over all earlier sessions i and
all layers. The paper writes squares (p = 2); what its authors ran sums absolute values, with lambda_1 =
0.5, so p = 1 is the default here. lambda_1 is 0.05, by validation (benchmarks/LOG.md). Their second
term (lambda_2, the norms of A and B) is 0 in their runs and left out. Every A is kept: r x in floats a
layer and session.
"""

from __future__ import annotations

import torch

from edge_pslora.compare.rule import Round, Step, summed


def overlap(A: torch.Tensor, earlier: torch.Tensor, power: int = 1) -> torch.Tensor:
    """sum |<a_i, a_j>|^p over the rows of A [r, in] and of all earlier A's, stacked [t r, in]."""
    products = earlier @ A.T
    return products.abs().sum() if power == 1 else products.abs().pow(power).sum()


class OLora:
    """weight: lambda_1; power: p. earlier: of each target all A's so far, [t r, in]."""

    def __init__(self, weight: float = 0.05, power: int = 1) -> None:
        self.weight, self.power = weight, power
        self.earlier: dict[str, torch.Tensor] = {}

    def begin(self, round: Round) -> None:
        pass

    def loss(self, round: Round, step: Step) -> torch.Tensor | None:
        if not self.earlier:
            return None
        overlaps = [
            overlap(adapter.A, self.earlier[name], self.power)
            for name, adapter in round.adapters.items()
        ]
        return self.weight * torch.stack(overlaps).sum()

    def after_step(self, round: Round) -> None:
        pass

    def end(self, round: Round) -> dict[str, torch.Tensor]:
        for name, adapter in round.adapters.items():
            A = adapter.A.detach().clone()
            before = self.earlier.get(name)
            self.earlier[name] = A if before is None else torch.cat([before, A])
        return summed(round)

    @property
    def kept_bytes(self) -> int:
        return sum(A.numel() * A.element_size() for A in self.earlier.values())
