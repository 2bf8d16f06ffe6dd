"""What the bounds of a compressed history prove about the signs of the true one.

Two statements, both without knowing S. Entry by entry: where |S~_ij| > eps, the sign is certain. As a
whole: where the sign of S~ is wrong, E = S~ - S has |S_ij| = |E_ij| - |S~_ij|; with |E|_F <= f the
weight that can be wrong is at most the largest, over m, of f sqrt(m) - (the m smallest |S~|), and
sum |S| >= sum |S~| - f sqrt(n). The second holds up long after the first has become empty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from edge_pslora.core.history import LayerHistory

_BINS = 4096
_TILE_ELEMENTS = 1 << 18
_ROUNDING = 1e-9  # far above that of float64 sums, far below the width of a bin


@dataclass(frozen=True)
class SignCertificate:
    """Shares in [0, 1]. entries: whose sign is proven one by one. agreement: at least this share of
    sum |S| lies where S~ has the right sign (magnitude-weighted sign agreement)."""

    entries: float
    agreement: float


def certify_signs(layer: LayerHistory) -> SignCertificate:
    """The certificate of one layer, from row tiles of S~ in float64. An empty history: all right."""
    left, right = (factor.double() for factor in layer.factors())
    out, size = layer.shape
    if layer.rank == 0:
        exact = layer.frobenius == 0.0
        return SignCertificate(float(exact), float(exact))
    norms = torch.linalg.vector_norm(left, dim=1), torch.linalg.vector_norm(right, dim=0)
    largest = float(norms[0].max() * norms[1].max()) * (1 + _ROUNDING)
    counts = torch.zeros(_BINS, dtype=torch.float64)
    proven, weight = 0, 0.0
    rows = max(1, _TILE_ELEMENTS // size)
    for start in range(0, out, rows):
        tile = (left[start : start + rows] @ right).abs()
        proven += int((tile > layer.eps).sum())
        weight += float(tile.sum())
        counts += torch.histc(tile, bins=_BINS, min=0.0, max=largest)
    # the lower edges: entries counted as smaller than they are leave more room for error, not less
    edges = torch.arange(_BINS, dtype=torch.float64) * (largest / _BINS * (1 - _ROUNDING))
    return SignCertificate(
        proven / (out * size), _agreement(counts, edges, weight, layer.frobenius)
    )


def _agreement(counts: torch.Tensor, edges: torch.Tensor, weight: float, frobenius: float) -> float:
    """counts [b] entries of size >= edges [b], rising; weight = sum |S~|; see the top of the file."""
    entries = float(counts.sum())
    least = weight - frobenius * math.sqrt(entries)
    if least <= 0.0:
        return 0.0
    # within a bin f sqrt(m) - edge m is concave: its top is inside at m = (f / (2 edge))^2, or at an end
    before = counts.cumsum(0) - counts
    smaller = (counts * edges).cumsum(0) - counts * edges
    top = (frobenius / (2 * edges.clamp_min(torch.finfo(torch.float64).tiny))) ** 2
    m = torch.minimum(torch.maximum(top, before), before + counts)
    wrong = frobenius * m.sqrt() - smaller - edges * (m - before)
    return max(0.0, 1.0 - max(0.0, float(wrong.max())) / least)
