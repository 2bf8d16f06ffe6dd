"""Are samples from where earlier ones were? Told by the earlier ones' statistics alone.

With the mean m and the covariance S of n earlier features, and M = S + mu I, mu a tenth of the mean
variance, a sample's distance (f - m)^T M^-1 (f - m) is k = tr(S M^-1) in the mean of the earlier samples
themselves: Mahalanobis's distance, softened where n samples say little about a direction. They made S,
so that others like them are further away: k / (1 - k / n), as of a sample left out (Sherman-Morrison).
"""

from __future__ import annotations

import torch

from edge_pslora.core.analytic_head import HeadStatistics

SOFTENED = 0.1


def novelty(statistics: HeadStatistics, features: torch.Tensor) -> float:
    """The mean distance of features [N, d] as a multiple of that of other samples like the earlier ones.

    About 1 where they are alike. O(d^3).

    Raises:
        ValueError: statistics of no samples.
    """
    if statistics.samples <= 0:
        raise ValueError("novelty: expected statistics of samples; found none")
    size = statistics.gram.shape[0] - 1
    count = float(statistics.gram[size, size])
    mean = statistics.gram[:size, size] / count
    covariance = statistics.gram[:size, :size] / count - torch.outer(mean, mean)
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(0.0)
    scale = values + SOFTENED * values.mean().clamp_min(torch.finfo(torch.float64).tiny)
    rotated = (features.double() - mean) @ vectors
    tiny = torch.finfo(torch.float64).tiny
    own = float((values / scale).sum().clamp_min(tiny))
    usual = own / max(1 - own / count, tiny)  # softened, k stays below the rank, which is below n
    return float((rotated.square() / scale).sum(1).mean()) / usual
