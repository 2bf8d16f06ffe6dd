"""The analytic head: ridge regression on streaming statistics (METHOD.md, "The head").

G = sum f f^T and Q = sum f y^T over all features f ever seen (f carries a trailing 1 for the bias);
the head is W = (G + mu I)^-1 Q, bias not penalised. Exact, independent of the order, nothing to
forget; a new class is a new column of Q. When training has moved the features, `fit_transport` finds
the map T from old to new features on the current data, and G <- T^T G T, Q <- T^T Q.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class HeadStatistics:
    """gram G [d+1, d+1], moment Q [d+1, C], both float64; labels name the C columns of Q.

    Regression: one column, labels ("value",).
    """

    gram: torch.Tensor
    moment: torch.Tensor
    labels: tuple[str, ...]
    samples: float = 0.0


def empty_statistics(feature_size: int, labels: tuple[str, ...] = ()) -> HeadStatistics:
    """Statistics of no samples for features [N, feature_size]."""
    size = feature_size + 1
    return HeadStatistics(
        torch.zeros(size, size, dtype=torch.float64),
        torch.zeros(size, len(labels), dtype=torch.float64),
        labels,
    )


def with_labels(statistics: HeadStatistics, labels: tuple[str, ...]) -> HeadStatistics:
    """Adds columns for the labels not known yet, after the old ones, in the order given."""
    new = tuple(label for label in labels if label not in statistics.labels)
    padding = statistics.moment.new_zeros(statistics.moment.shape[0], len(new))
    return replace(
        statistics,
        moment=torch.cat([statistics.moment, padding], dim=1),
        labels=statistics.labels + new,
    )


def augment(features: torch.Tensor) -> torch.Tensor:
    """[N, d] -> float64 [N, d + 1] with a trailing column of ones."""
    return torch.cat([features.double(), features.new_ones(len(features), 1).double()], dim=1)


def add_samples(
    statistics: HeadStatistics, features: torch.Tensor, targets: torch.Tensor
) -> HeadStatistics:
    """Adds N samples: features [N, d], targets [N, C] (one-hot rows, or values for regression)."""
    f = augment(features)
    return replace(
        statistics,
        gram=statistics.gram + f.T @ f,
        moment=statistics.moment + f.T @ targets.double(),
        samples=statistics.samples + len(features),
    )


def solve_head(statistics: HeadStatistics, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [C, d] and bias [C] of the ridge solution, float32.

    ridge: mu in units of the mean square of one feature, trace(G) / d without the bias (> 0).
    """
    size = statistics.gram.shape[0] - 1
    penalty = statistics.gram.diagonal()[:size].sum() / size * ridge
    diagonal = torch.full((size + 1,), float(penalty), dtype=torch.float64)
    # an unpenalised bias alone would make an empty G singular
    diagonal[size] = 1e-9 * max(statistics.samples, 1.0)
    diagonal = diagonal.clamp_min(torch.finfo(torch.float64).tiny)
    solution = torch.linalg.solve(
        statistics.gram + torch.diag(diagonal), statistics.moment
    )  # [d + 1, C]
    return solution[:size].T.float().contiguous(), solution[size].float().contiguous()


def fit_transport(old: torch.Tensor, new: torch.Tensor, ridge: float) -> torch.Tensor:
    """T [d+1, d+1] with new ~ old T in augmented features, by ridge towards the identity.

    old, new [N, d]: features of the same N samples before and after the session.
    T = I + (F^T F + mu I)^-1 F^T (F' - F), mu = ridge * trace(F^T F) / d.
    """
    before, after = augment(old), augment(new)
    gram = before.T @ before
    size = gram.shape[0]
    penalty = gram.diagonal()[:-1].sum() / (size - 1) * ridge
    eye = torch.eye(size, dtype=torch.float64)
    system = gram + penalty.clamp_min(torch.finfo(torch.float64).tiny) * eye
    shift: torch.Tensor = torch.linalg.solve(system, before.T @ (after - before))
    return eye + shift


def transport(statistics: HeadStatistics, T: torch.Tensor) -> HeadStatistics:
    """Statistics as if taken with features f T instead of f: G <- T^T G T, Q <- T^T Q."""
    gram = T.T @ statistics.gram @ T
    return replace(statistics, gram=(gram + gram.T) / 2, moment=T.T @ statistics.moment)
