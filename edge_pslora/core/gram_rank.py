"""G of an analytic head under a byte budget: its largest eigenpairs and an even rest.

G holds, in its last row, the sum of the features and the number of samples: these stay exact. What is
left is the scatter about the mean, S = V diag(l) V^T; kept are the k largest pairs, and the rest of
its trace, spread evenly over the other directions: trace(S) is unchanged. 4 (d + 1) bytes a pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edge_pslora.errors import BudgetError

_BYTES = 4  # float32
_OVERHEAD = 1024  # header of the file, names, numbers


@dataclass(frozen=True)
class LowRankGram:
    """edge [d+1]: the last row of G. vectors [d, k], values [k] falling; rest: of every other direction."""

    edge: torch.Tensor
    vectors: torch.Tensor
    values: torch.Tensor
    rest: float


def gram_rank(feature_size: int, budget_bytes: int) -> int | None:
    """How many eigenpairs of G [d+1, d+1] the budget holds; None: all of G.

    Depends on nothing that grows, so that every session's file is of one size.

    Raises:
        BudgetError: not even one pair.
    """
    row = _BYTES * (feature_size + 1)
    if budget_bytes >= _OVERHEAD + row * (feature_size + 1):
        return None
    rank = (budget_bytes - _OVERHEAD - row) // row
    if rank < 1:
        needed = _OVERHEAD + 2 * row
        raise BudgetError(
            "--head-budget",
            expected=f"at least {needed} bytes (one direction of {feature_size} features)",
            found=f"{budget_bytes} bytes",
            remedy=f"use --head-budget {needed} or more, or --head linear",
        )
    return min(rank, feature_size)


def compress_gram(gram: torch.Tensor, rank: int) -> LowRankGram:
    """The best of that rank for S; gram float64 [d+1, d+1], 1 <= rank <= d."""
    size = gram.shape[0] - 1
    edge = gram[size]
    scatter = gram[:size, :size] - _mean_part(edge)
    values, vectors = torch.linalg.eigh(scatter)
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
    left = size - rank
    rest = float(values[rank:].sum()) / left if left else 0.0
    return LowRankGram(edge.clone(), vectors[:, :rank].contiguous(), values[:rank], rest)


def restore_gram(low: LowRankGram) -> torch.Tensor:
    """G [d+1, d+1], float64."""
    size = len(low.edge) - 1
    edge, vectors = low.edge.double(), low.vectors.double()
    scatter = (vectors * (low.values.double() - low.rest)) @ vectors.T
    scatter += low.rest * torch.eye(size, dtype=torch.float64) + _mean_part(edge)
    gram = torch.empty(size + 1, size + 1, dtype=torch.float64)
    gram[:size, :size] = (scatter + scatter.T) / 2
    gram[size], gram[:, size] = edge, edge
    return gram


def _mean_part(edge: torch.Tensor) -> torch.Tensor:
    """n m m^T from sums n m and count n; zeros for no samples."""
    return torch.outer(edge[:-1], edge[:-1]) / edge[-1].clamp_min(1e-12)
