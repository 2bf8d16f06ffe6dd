"""Do labels follow from inputs, and do two sets of samples agree with a model alike? Exact where it can be.

Pure: numbers in, p values out. Both say how likely chance alone gives what was found, one-sided.
"""

from __future__ import annotations

import math

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


def smaller_share_p(right: int, of: int, right_elsewhere: int, of_elsewhere: int) -> float:
    """P(at most `right` of `of`, if both had the same share): Fisher's exact test, one-sided."""
    total, all_right = of + of_elsewhere, right + right_elsewhere
    ways = sum(
        math.comb(all_right, k) * math.comb(total - all_right, of - k)
        for k in range(max(0, of - (total - all_right)), right + 1)
    )
    return ways / math.comb(total, of)
