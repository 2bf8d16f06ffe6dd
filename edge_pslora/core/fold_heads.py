"""Heads solved without one fold of the session's samples each, the others and all earlier ones seen.

Two ways to the same heads. In a first session of N < d samples, from their N x N products: O(N^2 d)
once, O(N^3) a fold. Otherwise from G, from which a fold's own samples are taken away: O(N d^2) for all
folds together and one Cholesky factor, O(d^3 / 3), a fold.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from edge_pslora.core.analytic_head import (
    HeadStatistics,
    add_samples,
    penalty,
    solve_head,
    solve_positive,
)

Weigh = Callable[[torch.Tensor], torch.Tensor | None]  # targets [N, C] -> weights [N], None: 1 each
Rows = tuple[torch.Tensor, torch.Tensor]  # weight [C, d] and bias [C], float32


def is_small(old: HeadStatistics, count: int) -> bool:
    """Whether `count` samples are all there is, and fewer than features."""
    return old.samples <= 0.5 and count < old.gram.shape[0] - 1


def fold_heads(
    old: HeadStatistics,
    total: HeadStatistics,
    features: torch.Tensor,
    targets: torch.Tensor,
    fold: torch.Tensor,
    ridge: float,
    weigh: Weigh,
) -> list[Rows]:
    """Head k of each fold k: `solve_head` on the old statistics and the samples of all other folds.

    Args:
        old, total: statistics without and with all N samples.
        features, targets: [N, d], [N, C]; fold: int64 [N], each of 0..K-1 occurs.
        weigh: of the samples that a head sees.
    """
    seen = [fold != k for k in range(int(fold.max()) + 1)]
    if is_small(old, len(features)):
        products = Products(features)
        return [
            products.solve(of.nonzero()[:, 0], targets[of], ridge, weigh(targets[of]))
            for of in seen
        ]
    return [solve_head(_without(old, total, features, targets, of, weigh), ridge) for of in seen]


def _without(
    old: HeadStatistics,
    total: HeadStatistics,
    features: torch.Tensor,
    targets: torch.Tensor,
    seen: torch.Tensor,
    weigh: Weigh,
) -> HeadStatistics:
    weights = weigh(targets[seen])
    if weights is not None:  # they depend on who else is seen
        return add_samples(old, features[seen], targets[seen], weights)
    left_out = ~seen
    away = torch.full((int(left_out.sum()),), -1.0, dtype=torch.float64)
    return add_samples(total, features[left_out], targets[left_out], away)


class Products:
    """The products of N samples with each other, from which any of them can be solved for."""

    def __init__(self, features: torch.Tensor) -> None:
        """features [N, d], N below some thousands."""
        self._features = features.double()
        self._products = self._features @ self._features.T

    def solve(
        self,
        samples: torch.Tensor,
        targets: torch.Tensor,
        ridge: float,
        weights: torch.Tensor | None = None,
    ) -> Rows:
        """As `solve_head` on the statistics of these samples int64 [M] alone; targets [M, C].

        A penalty b on the bias is a sample of weight b with features and targets of zero: with it the
        bias is free, and drops out when everything is centred. Then W = R^T (R R^T + mu I)^-1 Y for
        the centred rows R, each times the root of its weight.
        """
        count, size = len(samples), self._features.shape[1]
        w = torch.ones(count, dtype=torch.float64) if weights is None else weights.double()
        products = self._products[samples][:, samples]
        mean_square = float(w @ products.diagonal()) / size
        mu, b = penalty(mean_square, ridge, float(w.sum()))
        w = torch.cat([w, w.new_tensor([b])])
        share = w / w.sum()
        products = torch.nn.functional.pad(products, (0, 1, 0, 1))
        y = torch.nn.functional.pad(targets.double(), (0, 0, 0, 1))
        level = share @ y
        to_mean = products @ share
        centred = products - to_mean[:, None] - to_mean[None] + share @ to_mean
        root = w.sqrt()
        system = root[:, None] * centred * root
        system.diagonal().add_(mu)
        dual = root[:, None] * solve_positive(system, root[:, None] * (y - level))
        rows = self._features[samples]
        weight = rows.T @ dual[:count]
        bias = level - (share[:count] @ rows) @ weight
        return weight.T.float().contiguous(), bias.float()
