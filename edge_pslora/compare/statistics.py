"""What a few seeds show, and what they do not: intervals, paired tests, effect sizes, shares of a gap.

Pure functions on figures of one method over its seeds, higher is better. Two methods are compared seed by
seed, since a seed gives both the same split and order. What is undefined (one seed, no spread) is None
beside a `note` that says why, never NaN. scipy is an extra (`edge-pslora[compare]`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edge_pslora.compare.extra import require_statistics

LEVEL = 0.95
SIGNIFICANCE = 0.05
ONE_SEED = "one seed: no interval"
NO_SPREAD = "no spread over the seeds: no test"
NO_GAP = "joint training is not above sequential LoRA: there is no gap to close"
DOUBTFUL_GAP = "the gap itself is not shown by these seeds: no interval"

Verdict = Literal["better", "worse", "not shown"]


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval; low and high are None where `note` says why."""

    mean: float
    low: float | None
    high: float | None
    seeds: int
    note: str = ""


@dataclass(frozen=True)
class Paired:
    """Ours minus theirs. p: two-sided, paired t-test. effect: Cohen's d of the differences."""

    difference: Estimate
    p: float | None
    effect: float | None
    note: str = ""


@dataclass(frozen=True)
class Judgement:
    """One comparison of a family. p: after Holm's correction; None: there was no test."""

    paired: Paired
    p: float | None
    verdict: Verdict


def estimate(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Mean and Student's t interval: mean +- t((1 + level) / 2, n - 1) s / sqrt(n).

    Raises:
        ValueError: no value, or one that is not finite.
        UsageError: scipy is missing.
    """
    _finite(values)
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Estimate(mean, None, None, 1, ONE_SEED)
    half = _quantile(level, len(values) - 1) * _deviation(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half, len(values))


def paired(ours: Sequence[float], theirs: Sequence[float], level: float = LEVEL) -> Paired:
    """Ours against theirs; entry k of both is of seed k.

    The effect is mean(d) / s(d) of the differences d (Cohen 1988, section 2.3.5: d_z).

    Raises:
        ValueError: not as many of the one as of the other, none, or one that is not finite.
        UsageError: scipy is missing.
    """
    _finite(ours)
    _finite(theirs)
    if len(ours) != len(theirs):
        raise ValueError(f"paired figures: expected {len(ours)} of theirs; found {len(theirs)}")
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    difference = estimate(differences, level)
    if len(differences) == 1:
        return Paired(difference, None, None, "one seed: no test")
    spread = _deviation(differences)
    if spread <= _rounding([*ours, *theirs]):
        return Paired(difference, None, None, NO_SPREAD)
    p = float(_scipy_stats().ttest_rel(ours, theirs).pvalue)
    return Paired(difference, p, difference.mean / spread)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values of one family after Holm's step-down correction (Holm 1979), in the order given.

    The k-th smallest of m (from 0) becomes max over j <= k of min(1, (m - j) p_j), so that the chance of
    one false verdict in the family stays below the level. None (there was no test) does not count.

    Raises:
        ValueError: a p value outside [0, 1].
    """
    known = [(p, i) for i, p in enumerate(p_values) if p is not None]
    if any(not 0 <= p <= 1 for p, _ in known):
        raise ValueError(f"p values: expected 0 to 1; found {list(p_values)}")
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(sorted(known)):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        corrected[i] = highest
    return corrected


def judged(
    family: Mapping[str, Paired], significance: float = SIGNIFICANCE
) -> dict[str, Judgement]:
    """Better, worse or not shown, for every comparison that is answered at once.

    "not shown" is no claim that two methods are equal: so many seeds do not tell them apart.
    """
    corrected = holm([found.p for found in family.values()])
    return {
        name: Judgement(found, p, _verdict(found.difference.mean, p, significance))
        for (name, found), p in zip(family.items(), corrected, strict=True)
    }


def gap_share(
    sequential: Sequence[float],
    joint: Sequence[float],
    ours: Sequence[float],
    level: float = LEVEL,
) -> Estimate | None:
    """Share of the gap between sequential LoRA and joint training that is closed; entry k is of seed k.

    mean(ours - sequential) / mean(joint - sequential), and Fieller's interval of a ratio of paired
    means (Fieller 1954): all r that a t-test of (ours - sequential) - r (joint - sequential) does not
    reject. It has ends only where the gap itself is shown. None: there is no gap (NO_GAP).

    Raises:
        ValueError: different numbers of seeds, none, or a value that is not finite.
        UsageError: scipy is missing.
    """
    for values in (sequential, joint, ours):
        _finite(values)
    if not len(sequential) == len(joint) == len(ours):
        found = f"{len(sequential)}, {len(joint)} and {len(ours)}"
        raise ValueError(f"seeds: expected as many of all three; found {found}")
    n = len(ours)
    closed = [a - b for a, b in zip(ours, sequential, strict=True)]
    gap = [a - b for a, b in zip(joint, sequential, strict=True)]
    top, bottom = math.fsum(closed) / n, math.fsum(gap) / n
    if bottom <= _rounding([*joint, *sequential]):
        return None
    share = top / bottom
    if n == 1:
        return Estimate(share, None, None, 1, ONE_SEED)
    # r^2 a - 2 r b + c <= 0, where a, b, c are moments less t^2 times their sampling (co)variance
    squared = _quantile(level, n - 1) ** 2 / n
    a = bottom**2 - squared * _covariance(gap, gap)
    b = top * bottom - squared * _covariance(closed, gap)
    c = top**2 - squared * _covariance(closed, closed)
    if a <= 0:
        return Estimate(share, None, None, n, DOUBTFUL_GAP)
    # a positive a has real roots: r = top / bottom gives -t^2 var(closed - r gap) / n <= 0
    half = math.sqrt(max(b * b - a * c, 0.0))
    low, high = (b - half) / a, (b + half) / a
    return Estimate(share, min(low, share), max(high, share), n)  # rounding


def _verdict(difference: float, p: float | None, significance: float) -> Verdict:
    if p is None or p >= significance:
        return "not shown"
    return "better" if difference > 0 else "worse"


def _finite(values: Sequence[float]) -> None:
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"figures over seeds: expected finite values; found {list(values)}")


def _deviation(values: Sequence[float]) -> float:
    return math.sqrt(_covariance(values, values))


def _covariance(x: Sequence[float], y: Sequence[float]) -> float:
    """Of a sample: divided by n - 1."""
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    products = [(a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)]
    return math.fsum(products) / (len(x) - 1)


def _rounding(values: Sequence[float]) -> float:
    """A spread below this is float64's rounding of equal differences, and no spread."""
    return 1e-12 * max(abs(value) for value in values)


def _quantile(level: float, degrees: int) -> float:
    return float(_scipy_stats().t.ppf((1 + level) / 2, degrees))


def _scipy_stats() -> Any:
    # scipy takes a second to import, and only a comparison needs it
    require_statistics()
    from scipy import stats

    return stats
