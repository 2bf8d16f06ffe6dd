"""The ridge of an analytic head by leave-one-out, in closed form, for many mu from one eigendecomposition.

With the bias eliminated (m = mean feature, n samples, S = sum (x - m)(x - m)^T = V diag(l) V^T) the
ridge solution for any mu costs O(d C), and the leverage of a sample of weight w is

    h = w (1 / n + sum_k z_k^2 / (l_k + mu)),   z = V^T (x - m).

A head solved without that sample misses its target by e / (1 - h), e = the residual of the head that
saw it. So the session's samples are left out one by one, exactly. Of the samples of earlier sessions
only the statistics are left: their residuals are what remains of the total, and their leverages are
taken as equal (generalised cross-validation). Both sums count, so that mu serves old classes too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from edge_pslora.core.analytic_head import HeadStatistics, bias_penalty, blocks, mean_square

RIDGES = tuple(10 ** (exponent / 2) for exponent in range(-8, 3))  # 1e-4 to 1e1, half decades
_LEAST_SPREAD = 1e-14  # of the largest l: below it float64 knows no direction
_LEAST_LEFT = 1e-9  # of 1 - h: a sample that the head follows wherever it goes


@dataclass(frozen=True)
class RidgePath:
    """Statistics in the basis where every ridge solution is diagonal; all float64.

    mean m [d]; vectors V [d, k]; values l [k] >= 0; rotated V^T (Q - m q^T) [k, C], q [C] the bias
    row of Q; level [C]: the mean target; count: n, with the bias's penalty. unit: mu of a ridge of 1.
    k = d, or fewer where nothing lies in the other directions.
    """

    statistics: HeadStatistics
    mean: torch.Tensor
    vectors: torch.Tensor
    values: torch.Tensor
    rotated: torch.Tensor
    level: torch.Tensor
    count: float
    unit: float

    def inverse(self, ridge: float) -> torch.Tensor:
        """1 / (l + mu) [k]."""
        tiny = torch.finfo(torch.float64).tiny
        return 1 / (self.values + max(self.unit * ridge, tiny))


@dataclass(frozen=True)
class LeaveOneOut:
    """Sums of weighted squared errors for each ridge: of the session's samples, each left out, and of
    the samples of earlier sessions, by generalised cross-validation."""

    ridges: tuple[float, ...]
    session: tuple[float, ...]
    old: tuple[float, ...]

    def best(self, slack: float = 0.0) -> float:
        """The smallest ridge whose error over all samples is within 1 + slack of the least."""
        errors = [s + o for s, o in zip(self.session, self.old, strict=True)]
        enough = (1 + slack) * min(errors)
        return next(r for r, e in zip(self.ridges, errors, strict=True) if e <= enough)


def ridge_path(statistics: HeadStatistics) -> RidgePath:
    """One eigendecomposition, O(d^3)."""
    size = statistics.gram.shape[0] - 1
    count, mean = _centre(statistics)
    scatter = statistics.gram[:size, :size] - count * torch.outer(mean, mean)
    values, vectors = torch.linalg.eigh(scatter)
    return _path(statistics, vectors, values.clamp_min(0.0))


def session_path(
    statistics: HeadStatistics, features: torch.Tensor, weights: torch.Tensor | None = None
) -> RidgePath:
    """The same path; in a first session of N < d samples from their N x N products, O(N^2 d).

    features [N, d], weights [N]: the session's samples, which are in the statistics.
    """
    total = float(len(features) if weights is None else weights.sum())
    if len(features) >= features.shape[1] or statistics.samples - total > 0.5:
        return ridge_path(statistics)
    _, mean = _centre(statistics)
    rows = features.double() - mean
    if weights is not None:
        rows *= weights.double().sqrt()[:, None]
    # sum w (x - m)(x - m)^T lacks what the bias's penalty moves the mean by
    rows = torch.cat([rows, bias_penalty(statistics.samples) ** 0.5 * mean[None]])
    values, left = torch.linalg.eigh(rows @ rows.T)
    kept = values > _LEAST_SPREAD * values[-1].clamp_min(torch.finfo(torch.float64).tiny)
    return _path(statistics, rows.T @ (left[:, kept] / values[kept].sqrt()), values[kept])


def _centre(statistics: HeadStatistics) -> tuple[float, torch.Tensor]:
    """(n with the bias's penalty, mean feature [d])."""
    size = statistics.gram.shape[0] - 1
    count = float(statistics.gram[size, size]) + bias_penalty(statistics.samples)
    return count, statistics.gram[:size, size] / count


def _path(statistics: HeadStatistics, vectors: torch.Tensor, values: torch.Tensor) -> RidgePath:
    size = statistics.gram.shape[0] - 1
    count, mean = _centre(statistics)
    bias = statistics.moment[size]
    return RidgePath(
        statistics,
        mean,
        vectors,
        values,
        vectors.T @ (statistics.moment[:size] - torch.outer(mean, bias)),
        bias / count,
        count,
        mean_square(statistics),
    )


def left_out_scores(
    path: RidgePath,
    features: torch.Tensor,
    targets: torch.Tensor,
    ridge: float,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """float64 [N, C]: the scores of each sample by the head solved without it.

    features [N, d], targets [N, C], weights [N]: samples that are in the path's statistics.
    """
    parts = []
    for z, y, w in _blocks(path, features, targets, weights):
        missed, leverage = _residuals(path, z, y, w, path.inverse(ridge))
        parts.append(y - missed / (1 - leverage).clamp_min(_LEAST_LEFT)[:, None])
    return torch.cat(parts)


def leave_one_out(
    path: RidgePath,
    features: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor | None = None,
    ridges: Sequence[float] = RIDGES,
) -> LeaveOneOut:
    """The errors of each ridge; arguments as of `left_out_scores`, the session's samples."""
    inverses = [path.inverse(ridge) for ridge in ridges]
    session, seen, leverages = ([0.0] * len(ridges) for _ in range(3))
    total = 0.0
    for z, y, w in _blocks(path, features, targets, weights):
        total += float(w.sum())
        for i, inverse in enumerate(inverses):
            missed, leverage = _residuals(path, z, y, w, inverse)
            square = w * missed.square().sum(1)
            session[i] += float((square / (1 - leverage).clamp_min(_LEAST_LEFT).square()).sum())
            seen[i] += float(square.sum())
            leverages[i] += float(leverage.sum())
    before = path.statistics.samples - total
    old = [0.0] * len(ridges)
    if before > 0.5:  # weights add up to a number of samples, up to rounding
        for i, inverse in enumerate(inverses):
            left = max(_squared_error(path, inverse) - seen[i], 0.0)
            freedom = 1 + float((path.values * inverse).sum()) - leverages[i]
            old[i] = left / max(1 - freedom / before, _LEAST_LEFT) ** 2
    return LeaveOneOut(tuple(ridges), tuple(session), tuple(old))


def _blocks(
    path: RidgePath, features: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """z [B, d], y [B, C], w [B], float64."""
    for part in blocks(len(features)):
        z = (features[part].double() - path.mean) @ path.vectors
        w = z.new_ones(len(z)) if weights is None else weights[part].double()
        yield z, targets[part].double(), w


def _residuals(
    path: RidgePath, z: torch.Tensor, y: torch.Tensor, w: torch.Tensor, inverse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(residuals [B, C] of the head that saw the samples, their leverages [B])."""
    leverage = w * (1 / path.count + z.square() @ inverse)
    return y - path.level - z @ (inverse[:, None] * path.rotated), leverage


def _squared_error(path: RidgePath, inverse: torch.Tensor) -> float:
    """Sum of squared residuals over all samples, from the statistics alone."""
    weight = inverse[:, None] * path.rotated  # [d, C]
    explained = (2 * path.rotated * weight - path.values[:, None] * weight.square()).sum()
    spread = path.statistics.squares.sum() - path.count * path.level.square().sum()
    return float(spread - explained)
