"""Is the new model fit to serve? A paired decision on the local holdout and the anchor set.

Pure: per-sample scores in, a decision out. Scores: 1.0 / 0.0 for a right / wrong class, minus the
squared error for regression; higher is better. Pairing the two models sample by sample keeps noise on
small sets from passing for progress or harm (exact sign test; for right / wrong it is McNemar's).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edge_pslora.config import GateConfig
from edge_pslora.core.agreement import Table, smaller_shares_p

Scores = Sequence[float]

# of a session's labels: below the first they follow from the inputs, below the second they contradict
# the serving model, below the third so much so that nothing but learning them excuses it; a session
# large enough for that is large enough to show what can be learned from it
NOTHING_LEARNED = 0.001
CONTRADICTED = 0.05
BEYOND_DOUBT = 1e-9
# where only the session itself says that its labels follow: honest ones had 2e-20 at most, those that
# were all wrong 8e-6 at least
FOLLOWS_ALONE = 1e-12
# ... which counts where inputs are other than they were, for labels of the same inputs were known: of
# digits as before 1.0 to 1.48, white on black 1.8 to 5
NEW_INPUTS = 1.6
# the share of the probability of their right labels that the anchors may lose where labels are doubtful,
# in a session too small to show that its labels follow: small hospitals of honest ones took 0.32 at most,
# but for one of twelve that took 0.44 and is refused
SURENESS_LOST = 1 / 3
# ... and in one that shows it, but contradicts what serves and does no better: honest ones took 0.05 at
# most, those with a part of their labels wrong 0.09 at least
SURENESS_LOST_IN_PART = 0.07


@dataclass(frozen=True)
class LabelEvidence:
    """What speaks for a session's labels. They, the held-out ones too, may be wrong; the anchors were not.

    learned_p: how likely chance alone lets what was learned agree so well with the labels of samples
        that it has not seen (the new model on held-out ones; heads of other folds on training samples).
    known_p: the same of the serving model and all of the session's samples whose labels it knows.
    alone_p: the same of heads that know nothing but the session's other samples: shows a change of
        inputs of which so few samples came that they drown in what was known before. Labels that are
        all wrong follow from inputs a little too, so that it has to be much smaller.
    novelty: how far the session's inputs are from earlier ones, which are at 1; None: not asked.
    None: nothing to tell by, for all of the labels are the same, or they are few.
    tables: for each label that the session and the anchors have, what the serving model has right of the
        session's samples with it, and of the anchors with it.
    before, after: scores of those samples whose labels it knows: the serving model's, and what was
        learned on samples that it has not seen.
    sure_before, sure_after: probability of the right label of each anchor, by the serving model and the
        new one; empty where the kind of task has none.
    """

    learned_p: float | None
    known_p: float | None
    alone_p: float | None
    novelty: float | None
    tables: Sequence[Table]
    before: Scores
    after: Scores
    sure_before: Scores = ()
    sure_after: Scores = ()

    @property
    def contradicted_p(self) -> float:
        """How likely chance alone has the serving model so much less right here than on the anchors.

        Label by label: more samples of the labels that it is bad at do not count.
        """
        return smaller_shares_p(self.tables)

    @property
    def can_contradict(self) -> bool:
        """Whether it would have been seen if none of the session's samples were right."""
        return smaller_shares_p(replace(t, right=0) for t in self.tables) < CONTRADICTED

    @property
    def keeps_sure(self) -> bool:
        """Whether the anchors keep their right labels about as probable as they were: much finer than
        what is right and wrong of a few dozens, for labels that say nothing dilute what was learned."""
        kept = sum(self.sure_after) / sum(self.sure_before) if self.sure_before else 0.0
        return kept >= 1 - (SURENESS_LOST_IN_PART if self.follow else SURENESS_LOST)

    @property
    def follow(self) -> bool:
        """Whether samples that were not seen show that the labels follow from the inputs."""
        return self.learned_p is not None and self.learned_p < NOTHING_LEARNED

    @property
    def follow_alone(self) -> bool:
        """Whether new inputs, by themselves, leave no doubt that labels follow from them."""
        if self.alone_p is None or self.novelty is None:
            return False
        return self.alone_p < FOLLOWS_ALONE and self.novelty > NEW_INPUTS

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
    alone_p: float | None = None
    novelty: float | None = None
    contradicted_p: float | None = None
    gained_p: float | None = None
    sure_before: float | None = None
    sure_after: float | None = None


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
        None if labels is None else labels.alone_p,
        None if labels is None else labels.novelty,
        None if labels is None else labels.contradicted_p,
        None if labels is None else labels.gained_p,
        None if labels is None or not labels.sure_before else _mean(labels.sure_before),
        None if labels is None or not labels.sure_after else _mean(labels.sure_after),
    )
    return GateDecision(config.force or not reasons, tuple(reasons), figures)


def _distrust(labels: LabelEvidence, significance: float) -> list[str]:
    """Reasons not to trust a session's labels.

    Where labels do not follow from inputs there is nothing to gain, and a small anchor set may not show
    what is lost. Labels that the serving model contradicts are drift if they can be learned, so that
    what was learned does better on samples it has not seen. Of either doubt a small session has the
    benefit if the anchors stay as sure as they were: it may be honest, and too small to show it. One whose
    labels follow is not that small: some of them may be wrong, and less may be lost.
    """
    told = [p for p in (labels.learned_p, labels.known_p) if p is not None]
    alone = labels.follow_alone
    contradicted_p = labels.contradicted_p
    small = (
        labels.learned_p is not None and labels.can_contradict and contradicted_p >= BEYOND_DOUBT
    )
    if small and labels.keeps_sure:
        return []
    reasons: list[str] = []
    learned = alone or labels.follow
    if labels.learned_p is not None and min(told) >= NOTHING_LEARNED and not alone:
        reasons.append(
            f"the session's labels do not follow from its inputs (p = {min(told):.2g} by chance)"
        )
    drift = learned and labels.gained_p < significance
    if contradicted_p < CONTRADICTED and not drift:
        right, of = sum(t.right for t in labels.tables), sum(t.of for t in labels.tables)
        expected = sum(t.expected for t in labels.tables)
        reasons.append(
            f"the session's labels contradict what the serving model knows: it has {right} of {of} "
            f"right, where {expected:.0f} would be as on the anchors (p = {contradicted_p:.2g} by "
            f"chance), and what was learned is not shown to do better on samples it has not seen"
        )
    return reasons


def _mean(scores: Scores) -> float:
    return sum(scores) / len(scores) if len(scores) else 0.0
