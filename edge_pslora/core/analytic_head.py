"""The analytic head: ridge regression on streaming statistics (METHOD.md, "The head").

G = sum f f^T and Q = sum f y^T over all features f ever seen (f carries a trailing 1 for the bias);
the head is W = (G + mu I)^-1 Q, bias not penalised. Exact, independent of the order, nothing to
forget; a new class is a new column of Q. Samples may carry weights. When training has moved the
features, `fit_transport` finds the map T from old to new features on the current data, and
G <- T^T G T, Q <- T^T Q.
The samples are taken in blocks: no float64 copy of all features is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

BLOCK = 8192  # samples that are turned into float64 at a time


@dataclass(frozen=True)
class HeadStatistics:
    """gram G [d+1, d+1], moment Q [d+1, C], squares sum y^2 [C], all float64; labels name the C columns.

    Regression: one column, labels ("value",). samples: the sum of their weights.
    """

    gram: torch.Tensor
    moment: torch.Tensor
    squares: torch.Tensor
    labels: tuple[str, ...]
    samples: float = 0.0


def empty_statistics(feature_size: int, labels: tuple[str, ...] = ()) -> HeadStatistics:
    """Statistics of no samples for features [N, feature_size]."""
    size = feature_size + 1
    return HeadStatistics(
        torch.zeros(size, size, dtype=torch.float64),
        torch.zeros(size, len(labels), dtype=torch.float64),
        torch.zeros(len(labels), dtype=torch.float64),
        labels,
    )


def with_labels(statistics: HeadStatistics, labels: tuple[str, ...]) -> HeadStatistics:
    """Adds columns for the labels not known yet, after the old ones, in the order given."""
    new = tuple(label for label in labels if label not in statistics.labels)
    padding = statistics.moment.new_zeros(statistics.moment.shape[0], len(new))
    return replace(
        statistics,
        moment=torch.cat([statistics.moment, padding], dim=1),
        squares=torch.cat([statistics.squares, padding[0]]),
        labels=statistics.labels + new,
    )


def augment(features: torch.Tensor) -> torch.Tensor:
    """[N, d] -> float64 [N, d + 1] with a trailing column of ones."""
    return torch.cat([features.double(), features.new_ones(len(features), 1).double()], dim=1)


def blocks(count: int) -> Iterator[slice]:
    """Slices of at most BLOCK samples that make up `count`."""
    return (slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))


def add_samples(
    statistics: HeadStatistics,
    features: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor | None = None,
) -> HeadStatistics:
    """Adds N samples: features [N, d], targets [N, C], weights [N] (None: 1 each).

    targets: one-hot or multi-hot rows, or values for regression.
    """
    gram, moment = statistics.gram, statistics.moment
    squares, samples = statistics.squares, statistics.samples
    for part in blocks(len(features)):
        f, y = augment(features[part]), targets[part].double()
        weighted = f if weights is None else f * weights[part].double()[:, None]
        gram = torch.addmm(gram, weighted.T, f)
        moment = torch.addmm(moment, weighted.T, y)
        squares = squares + weighted[:, -1] @ y.square()
        samples += float(weighted[:, -1].sum())
    return replace(statistics, gram=gram, moment=moment, squares=squares, samples=samples)


def mean_square(statistics: HeadStatistics) -> float:
    """trace(G) / d without the bias: the unit of the ridge."""
    size = statistics.gram.shape[0] - 1
    return float(statistics.gram.diagonal()[:size].sum() / size)


def bias_penalty(samples: float) -> float:
    """Nearly nothing; but an unpenalised bias alone would make an empty G singular."""
    return 1e-9 * max(samples, 1.0)


def penalty(square: float, ridge: float, samples: float) -> tuple[float, float]:
    """What is added to the diagonal of G, (mu, that of the bias), never zero.

    square: the mean square of one feature.
    """
    tiny = torch.finfo(torch.float64).tiny
    return max(square * ridge, tiny), bias_penalty(samples)


def solve_positive(system: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """system^-1 right, by Cholesky; statistics that were rounded to float32 may be a little indefinite,
    and are then solved as any system is."""
    factor, failed = torch.linalg.cholesky_ex(system)
    if int(failed):
        solution: torch.Tensor = torch.linalg.solve(system, right)
        return solution
    return torch.cholesky_solve(right, factor)


def solve_head(statistics: HeadStatistics, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [C, d] and bias [C] of the ridge solution, float32.

    ridge: mu in units of the mean square of one feature, trace(G) / d without the bias (> 0).
    """
    size = statistics.gram.shape[0] - 1
    mu, of_bias = penalty(mean_square(statistics), ridge, statistics.samples)
    system = statistics.gram.clone()
    system.diagonal()[:size].add_(mu)
    system.diagonal()[size].add_(of_bias)
    solution = solve_positive(system, statistics.moment)  # [d + 1, C]
    return solution[:size].T.float().contiguous(), solution[size].float().contiguous()


def fit_transport(old: torch.Tensor, new: torch.Tensor, ridge: float) -> torch.Tensor:
    """T [d+1, d+1] with new ~ old T in augmented features, by ridge towards the identity.

    old, new [N, d]: features of the same N samples before and after the session.
    T = I + (F^T F + mu I)^-1 F^T (F' - F), mu = ridge * trace(F^T F) / d.
    """
    size = old.shape[1] + 1
    eye = torch.eye(size, dtype=torch.float64)
    if len(old) < size:  # F^T (F F^T + mu I)^-1 is the same with smaller factors
        before, after = augment(old), augment(new)
        products = before @ before.T
        products.diagonal().add_(_unit(before.square().sum() - len(before), size, ridge))
        return eye + before.T @ solve_positive(products, after - before)
    gram, cross = (torch.zeros(size, size, dtype=torch.float64) for _ in range(2))
    for part in blocks(len(old)):
        before, after = augment(old[part]), augment(new[part])
        gram += before.T @ before
        cross += before.T @ (after - before)
    gram.diagonal().add_(_unit(gram.diagonal()[:-1].sum(), size, ridge))
    return eye + solve_positive(gram, cross)


def _unit(squares: torch.Tensor, size: int, ridge: float) -> torch.Tensor:
    return (squares / (size - 1) * ridge).clamp_min(torch.finfo(torch.float64).tiny)


def transport(statistics: HeadStatistics, T: torch.Tensor) -> HeadStatistics:
    """Statistics as if taken with features f T instead of f: G <- T^T G T, Q <- T^T Q."""
    gram = T.T @ statistics.gram @ T
    return replace(statistics, gram=(gram + gram.T) / 2, moment=T.T @ statistics.moment)
