"""Is the new model fit to serve? A paired decision on the local holdout and the anchor set.

Pure: per-sample scores in, a decision out. Scores: 1.0 / 0.0 for a right / wrong class, minus the
squared error for regression; higher is better. Pairing the two models sample by sample keeps noise on
small sets from passing for progress or harm (exact sign test; for right / wrong it is McNemar's).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edge_pslora.config import GateConfig

Scores = Sequence[float]


@dataclass(frozen=True)
class GateFigures:
    """What the decision rests on. p values are one-sided: how likely chance alone does such harm."""

    holdout_before: float | None
    holdout_after: float
    holdout_p: float
    anchor_before: float | None
    anchor_after: float | None
    anchor_p: float
    floor: float | None


@dataclass(frozen=True)
class GateDecision:
    """promote, and why (one sentence each; empty when nothing speaks against it)."""

    promote: bool
    reasons: tuple[str, ...]
    figures: GateFigures


def worse_p_value(before: Scores, after: Scores) -> float:
    """P(at least so many samples got worse by chance), exact one-sided sign test without ties.

    Raises:
        ValueError: the two do not score the same number of samples.
    """
    if len(before) != len(after):
        raise ValueError(f"paired scores: expected {len(before)} after; found {len(after)}")
    worse = sum(a < b for b, a in zip(before, after, strict=True))
    better = sum(a > b for b, a in zip(before, after, strict=True))
    changed = worse + better
    tail = sum(math.comb(changed, k) for k in range(worse, changed + 1))
    return float(tail / 2**changed)


def decide(
    config: GateConfig,
    holdout_after: Scores,
    *,
    holdout_before: Scores | None = None,
    anchor_before: Scores | None = None,
    anchor_after: Scores | None = None,
    floor: Scores | None = None,
) -> GateDecision:
    """Promote unless the holdout is significantly worse or the anchor drops beyond tolerance.

    Args:
        holdout_before: the serving model's scores; None when there is none, then `floor` counts.
        anchor_before, anchor_after: scores on the anchor set; None or empty before the second session.
        floor: scores on the holdout of a model that knows nothing (always the most frequent class, or
            the mean); hard data and a small holdout put an honest model below it by chance.
    """
    reasons: list[str] = []
    after = _mean(holdout_after)
    before = None if holdout_before is None else _mean(holdout_before)
    holdout_p = 1.0
    constant = None if floor is None else _mean(floor)
    if holdout_before is not None and before is not None:
        holdout_p = worse_p_value(holdout_before, holdout_after)
        if after < before and holdout_p < config.significance:
            reasons.append(
                f"holdout fell from {before:.3f} to {after:.3f} (p = {holdout_p:.2g} by chance)"
            )
    elif floor is not None and constant is not None:
        holdout_p = worse_p_value(floor, holdout_after)
        if after < constant and holdout_p < config.significance:
            reasons.append(
                f"holdout {after:.3f} is below {constant:.3f}, what a constant answer reaches "
                f"(p = {holdout_p:.2g} by chance)"
            )
    anchor_p, old, new = 1.0, None, None
    if anchor_before and anchor_after:
        anchor_p = worse_p_value(anchor_before, anchor_after)
        old, new = _mean(anchor_before), _mean(anchor_after)
        if old - new > config.max_forgetting and anchor_p < config.significance:
            reasons.append(
                f"anchor set fell from {old:.3f} to {new:.3f}, more than the "
                f"{config.max_forgetting:.3f} allowed (p = {anchor_p:.2g} by chance)"
            )
    figures = GateFigures(before, after, holdout_p, old, new, anchor_p, constant)
    return GateDecision(config.force or not reasons, tuple(reasons), figures)


def _mean(scores: Scores) -> float:
    return sum(scores) / len(scores) if len(scores) else 0.0
