"""Is the new model fit to serve? A paired decision on the local holdout and the anchor set.

Pure: per-sample scores in, a decision out. Scores: 1.0 / 0.0 for a right / wrong class, minus the
squared error for regression; higher is better. Pairing the two models sample by sample keeps noise on
small sets from passing for progress or harm (exact sign test; for right / wrong it is McNemar's).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge_pslora.config import GateConfig
from edge_pslora.core.agreement import smaller_share_p

Scores = Sequence[float]

# of a session's labels: below the first they follow from the inputs, below the second they contradict
# the serving model; so rare by chance that hundreds of sessions in a row are judged rightly
NOTHING_LEARNED = 0.001
CONTRADICTED = 0.001


@dataclass(frozen=True)
class LabelEvidence:
    """What speaks for a session's labels. They, the held-out ones too, may be wrong; the anchors were not.

    learned_p: how likely chance alone lets what was learned agree so well with the labels of samples
        that it has not seen (the new model on held-out ones; heads of other folds on training samples).
    known_p: the same of the serving model and all of the session's samples whose labels it knows.
    None: nothing to tell by, for all of the labels are the same, or they are few.
    known_right, known: of those samples, how many the serving model has right, and how many they are.
    anchors_right, anchors: the same of the anchor set.
    before, after: scores of those samples whose labels it knows: the serving model's, and what was
        learned on samples that it has not seen.
    """

    learned_p: float | None
    known_p: float | None
    known_right: int
    known: int
    anchors_right: int
    anchors: int
    before: Scores
    after: Scores

    @property
    def contradicted_p(self) -> float:
        """How likely chance alone has the serving model so much less right here than on the anchors."""
        return smaller_share_p(self.known_right, self.known, self.anchors_right, self.anchors)

    @property
    def gained_p(self) -> float:
        """How likely chance alone makes `after` so much better than `before`."""
        return worse_p_value(self.after, self.before)


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
    learned_p: float | None = None
    known_p: float | None = None
    contradicted_p: float | None = None
    gained_p: float | None = None


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
    labels: LabelEvidence | None = None,
    updates: Mapping[str, float] | None = None,
) -> GateDecision:
    """Promote unless the holdout is significantly worse, the anchor drops beyond tolerance, or the
    session's labels cannot be trusted.

    Args:
        holdout_before: the serving model's scores; None when there is none, then `floor` counts.
        anchor_before, anchor_after: scores on the anchor set; None or empty before the second session.
        floor: scores on the holdout of a model that knows nothing (always the most frequent class, or
            the mean); hard data and a small holdout put an honest model below it by chance.
        labels: None: not judged.
        updates: layer -> |D| / |W0|.
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
    if labels is not None:
        reasons += _distrust(labels, config.significance)
    too_large = [(n, s) for n, s in (updates or {}).items() if not s <= config.max_update]
    for layer, size in too_large[:1]:
        reasons.append(
            f"the update of {layer} is {size:.3g} times its weights, more than the "
            f"{config.max_update:g} allowed"
        )
    figures = GateFigures(
        before,
        after,
        holdout_p,
        old,
        new,
        anchor_p,
        constant,
        None if labels is None else labels.learned_p,
        None if labels is None else labels.known_p,
        None if labels is None else labels.contradicted_p,
        None if labels is None else labels.gained_p,
    )
    return GateDecision(config.force or not reasons, tuple(reasons), figures)


def _distrust(labels: LabelEvidence, significance: float) -> list[str]:
    """Reasons not to trust a session's labels.

    Where labels do not follow from inputs there is nothing to gain, and a small anchor set may not show
    what is lost. Labels that the serving model contradicts are drift if they can be learned, so that
    what was learned does better on samples it has not seen; if they cannot, they are wrong.
    """
    reasons: list[str] = []
    told = [p for p in (labels.learned_p, labels.known_p) if p is not None]
    learned = labels.learned_p is not None and labels.learned_p < NOTHING_LEARNED
    if labels.learned_p is not None and min(told) >= NOTHING_LEARNED:
        reasons.append(
            f"the session's labels do not follow from its inputs (p = {min(told):.2g} by chance)"
        )
    drift = learned and labels.gained_p < significance
    if labels.contradicted_p < CONTRADICTED and not drift:
        reasons.append(
            f"the session's labels contradict what the serving model knows: it has "
            f"{labels.known_right} of {labels.known} right, of the anchors {labels.anchors_right} of "
            f"{labels.anchors}, and what was learned is not shown to do better on samples it has not seen"
        )
    return reasons


def _mean(scores: Scores) -> float:
    return sum(scores) / len(scores) if len(scores) else 0.0
