"""How far a session moves the features, and what they moved in before: the stability of features.

Old samples are gone when a session trains, but the new samples' features under the model that served
so far are known. Holding these in place (less-forgetting learning, arXiv 1607.00122, Eq. 2) holds what
the old model does around them, and above all forbids what moves the features of all inputs alike.
The squared distance counts in units of the earlier features' variance, so one weight serves all models.
"""

from __future__ import annotations

import torch

from edge_pslora.core.analytic_head import HeadStatistics


def feature_drift(features: torch.Tensor, before: torch.Tensor, variance: float) -> torch.Tensor:
    """mean over samples of |f - f_before|^2 / variance, a scalar; features, before: [B, d]."""
    return (features.float() - before.float()).square().sum(1).mean() / variance


def feature_variance(statistics: HeadStatistics) -> float:
    """sum over directions of the variance of all earlier features; never below 1e-12 of their square.

    Raises:
        ValueError: statistics of no samples.
    """
    if statistics.samples <= 0:
        raise ValueError("feature_variance: expected statistics of samples; found none")
    size = statistics.gram.shape[0] - 1
    count = float(statistics.gram[size, size])
    square = float(statistics.gram[:size, :size].diagonal().sum()) / count
    mean = statistics.gram[:size, size] / count
    least = max(1e-12 * square, torch.finfo(torch.float32).tiny)
    return max(square - float(mean.square().sum()), least)
