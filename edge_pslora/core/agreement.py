"""Do labels follow from inputs, and do two sets of samples agree with a model alike? Exact where it can be.

Pure: numbers in, p values out. Both say how likely chance alone gives what was found, one-sided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def association_p(answers: Array, targets: Array, level: float = 1.0) -> float | None:
    """P(at least so much agreement if the targets were shuffled), by the normal limit.

    T = sum_i a_i . t_i of answers and targets [N, K], one row a sample (columns 0 / 1 for labels). Over
    all permutations of the targets T has the mean sum(a) . sum(t) / N and the variance
    tr((A'A)(B'B)) / (N - 1) of the centred A and B: Hoeffding 1951, "A combinatorial central limit
    theorem", for which no label need be frequent and no model good. Unlike a comparison with the most
    frequent label it finds what is learned of rare ones.

    Returns:
        None where nothing can be told: targets that do not vary, or so few that even answers that are
        all right would not come below `level`. 1.0 where the answers do not vary.
    """
    best = _p(targets, targets) if len(targets) > 1 else 1.0
    return None if best >= level else _p(answers, targets)


def _p(answers: Array, targets: Array) -> float:
    count = len(targets)
    a, t = answers - answers.mean(axis=0), targets - targets.mean(axis=0)
    variance = float(((a.T @ a) * (t.T @ t)).sum()) / (count - 1)
    if variance <= 0:
        return 1.0
    excess = float((a * t).sum())
    return 0.5 * math.erfc(excess / math.sqrt(2 * variance))


@dataclass(frozen=True)
class Table:
    """Samples with one label: how many a model has right here, of how many, and the same elsewhere."""

    right: int
    of: int
    right_elsewhere: int
    of_elsewhere: int

    @property
    def expected(self) -> float:
        """Right ones here if the share were the same as elsewhere; nan: none are elsewhere."""
        return self.of * self.right_elsewhere / self.of_elsewhere if self.of_elsewhere else math.nan


def smaller_shares_p(tables: Iterable[Table]) -> float:
    """P(at most so many right here, if each label had the same share here and elsewhere), one-sided.

    The exact form of the Cochran-Mantel-Haenszel test (Mantel and Haenszel 1959; Birch 1964, "The
    detection of partial association, I: the 2 x 2 case"): given its margins each table is
    hypergeometric, and their sum has the convolution as its distribution. Other frequencies of the
    labels here than elsewhere do not matter; a label that only one side has says nothing.
    """
    chances, observed = np.ones(1), 0
    for table in tables:
        least, of_table = _right_by_chance(table)
        chances = np.convolve(chances, of_table)
        observed += table.right - least
    return min(1.0, float(chances[: observed + 1].sum()))


def _right_by_chance(table: Table) -> tuple[int, Array]:
    """The least number of right ones that the margins allow, and P of it, of one more, ..."""
    of, total = table.of, table.of + table.of_elsewhere
    right = table.right + table.right_elsewhere
    least, most = max(0, of - (total - right)), min(of, right)
    logs = [
        _log_choose(right, k) + _log_choose(total - right, of - k) for k in range(least, most + 1)
    ]
    return least, np.exp(np.array(logs) - _log_choose(total, of))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
