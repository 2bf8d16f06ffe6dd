"""Deep streaming linear discriminant analysis (arXiv 1909.01520, section 3; Eq. 1 to 4).

Features z_t of class y come one by one: with the class means mu_y and the covariance Sigma before it,

    Sigma <- (t Sigma + t / (t + 1) (z - mu_y)(z - mu_y)^T) / (t + 1)
    mu_y <- mu_y + (z - mu_y) / (n_y + 1),

and the answer is the largest of z^T L mu_k - mu_k^T L mu_k / 2, L = ((1 - eps) Sigma + eps v I)^-1.
Here v is the mean variance, so that eps serves features of every scale, and eps is 0.1; the paper has v
= 1 and eps = 1e-4, for streams with far more samples than features. A mean starts at zero, so that the
first sample of a class brings all of itself into Sigma, as in the authors' code; their other start,
from a base set's own covariance, is not used. A whole session at once gives the same as one by one: t
Sigma is a sum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from edge_pslora.compare.learners.frozen import require_head
from edge_pslora.compare.learners.heads import empty_head, extended
from edge_pslora.compare.method import EVERY, Among, Setup
from edge_pslora.compare.scoring import head_scores
from edge_pslora.training.features import extract_features
from edge_pslora.training.session import SessionData

SHRINKAGE = 0.1  # by validation, benchmarks/LOG.md


@dataclass(frozen=True)
class LdaStatistics:
    """float64: means [C, d], counts [C], scatter t Sigma [d, d]; samples: t."""

    means: torch.Tensor
    counts: torch.Tensor
    scatter: torch.Tensor
    samples: int = 0

    @property
    def nbytes(self) -> int:
        """As float32, which is what a device would keep."""
        return 4 * (self.means.numel() + self.counts.numel() + self.scatter.numel())


def empty_lda(feature_size: int) -> LdaStatistics:
    f64 = torch.float64
    scatter = torch.zeros(feature_size, feature_size, dtype=f64)
    return LdaStatistics(
        torch.zeros(0, feature_size, dtype=f64), torch.zeros(0, dtype=f64), scatter
    )


def with_classes(statistics: LdaStatistics, count: int) -> LdaStatistics:
    """Room for `count` classes; those there are stay the first."""
    missing = count - len(statistics.counts)
    means, counts = statistics.means, statistics.counts
    return replace(
        statistics,
        means=torch.cat([means, means.new_zeros(missing, means.shape[1])]),
        counts=torch.cat([counts, counts.new_zeros(missing)]),
    )


def add_lda(
    statistics: LdaStatistics, features: torch.Tensor, classes: torch.Tensor
) -> LdaStatistics:
    """With N more samples, in this order: features [N, d], classes int64 [N]."""
    z = features.double()
    before = torch.empty_like(z)  # mean of the sample's class before it
    means, counts = statistics.means.clone(), statistics.counts.clone()
    for k in sorted(set(classes.tolist())):
        members = (classes == k).nonzero()[:, 0]
        sums = means[k] * counts[k] + z[members].cumsum(0)
        numbers = counts[k] + torch.arange(1, len(members) + 1, dtype=torch.float64)
        running = sums / numbers[:, None]
        before[members] = torch.cat([means[k][None], running[:-1]])
        means[k], counts[k] = running[-1], numbers[-1]
    t = statistics.samples + torch.arange(len(z), dtype=torch.float64)
    apart = z - before
    scatter = statistics.scatter + (apart * (t / (t + 1))[:, None]).T @ apart
    return LdaStatistics(means, counts, scatter, statistics.samples + len(z))


def solve_lda(
    statistics: LdaStatistics, shrinkage: float = SHRINKAGE
) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [C, d] and bias [C], float32, of the linear head that answers so."""
    size = statistics.scatter.shape[0]
    sigma = statistics.scatter / max(statistics.samples, 1)
    unit = sigma.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    mixed = (1 - shrinkage) * sigma + shrinkage * unit * torch.eye(size, dtype=torch.float64)
    weight = torch.linalg.solve(mixed, statistics.means.T).T  # [C, d]
    bias = -0.5 * (weight * statistics.means).sum(1)
    return weight.float(), bias.float()


class LdaLearner:
    """Frozen features and the linear head of the statistics."""

    trained = 0

    def __init__(self, setup: Setup, shrinkage: float = SHRINKAGE) -> None:
        require_head(setup)
        self.shrinkage = shrinkage
        self.model = setup.model
        self.config = setup.config
        self.statistics = empty_lda(setup.model.feature_size)
        self.head = empty_head(setup)

    def learn(self, data: SessionData) -> None:
        self.head, wanted = extended(self.head, data)
        size = self.config.train.batch_size
        features = extract_features(self.model.backbone, data.inputs, size)
        known = with_classes(self.statistics, len(self.head.labels))
        self.statistics = add_lda(known, features, wanted)
        weight, bias = solve_lda(self.statistics, self.shrinkage)
        self.head = replace(self.head, weight=weight, bias=bias)

    def score(self, data: SessionData, among: Among = EVERY) -> tuple[float, ...]:
        return head_scores(self.model.backbone, self.head, data, among)

    @property
    def kept_bytes(self) -> int:
        return self.statistics.nbytes
