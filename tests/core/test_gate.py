"""The gate: refuses real harm, lets noise and progress pass."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_pslora.config import GateConfig
from edge_pslora.core.agreement import Table, smaller_shares_p
from edge_pslora.core.gate import LabelEvidence, decide, worse_p_value

CONFIG = GateConfig(max_forgetting=0.01, significance=0.05)
scores = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60)


def _literal_p(worse: int, changed: int) -> float:
    return sum(math.comb(changed, k) * 0.5**changed for k in range(worse, changed + 1))


@given(st.data())
def test_p_value_is_the_binomial_tail(data):
    before = data.draw(scores)
    after = data.draw(
        st.lists(st.sampled_from([0.0, 1.0]), min_size=len(before), max_size=len(before))
    )
    worse = sum(a < b for b, a in zip(before, after, strict=True))
    better = sum(a > b for b, a in zip(before, after, strict=True))
    assert worse_p_value(before, after) == pytest.approx(_literal_p(worse, worse + better))


@given(scores)
def test_an_unchanged_model_is_always_promoted(before):
    decision = decide(
        CONFIG, before, holdout_before=before, anchor_before=before, anchor_after=before
    )
    assert decision.promote
    assert decision.reasons == ()


def test_a_clear_loss_on_the_holdout_is_refused():
    decision = decide(CONFIG, [0.0] * 20 + [1.0] * 20, holdout_before=[1.0] * 40)
    assert not decision.promote
    assert "holdout fell from 1.000 to 0.500" in decision.reasons[0]


def test_one_sample_worse_is_noise():
    assert decide(CONFIG, [0.0] + [1.0] * 39, holdout_before=[1.0] * 40).promote


def test_forgetting_beyond_tolerance_is_refused_although_the_holdout_improved():
    decision = decide(
        CONFIG,
        [1.0] * 10,
        holdout_before=[0.0] * 10,
        anchor_before=[1.0] * 100,
        anchor_after=[1.0] * 90 + [0.0] * 10,
    )
    assert not decision.promote
    assert "anchor set fell from 1.000 to 0.900" in decision.reasons[0]


def test_tolerance_is_honoured():
    lenient = GateConfig(max_forgetting=0.2)
    anchor = {"anchor_before": [1.0] * 100, "anchor_after": [1.0] * 90 + [0.0] * 10}
    assert decide(lenient, [1.0], holdout_before=[1.0], **anchor).promote


def test_the_first_model_must_not_be_worse_than_a_constant_answer():
    constant = [1.0] * 20 + [0.0] * 20
    assert not decide(CONFIG, [0.0] * 30 + [1.0] * 10, floor=constant).promote
    assert decide(CONFIG, [1.0] * 30 + [0.0] * 10, floor=constant).promote
    # one sample below, on forty: that is chance, and no older model serves that could be lost
    assert decide(CONFIG, [0.0] + [1.0] * 19 + [0.0] * 20, floor=constant).promote


def test_force_promotes_and_still_says_why_not():
    decision = decide(GateConfig(force=True), [0.0] * 40, holdout_before=[1.0] * 40)
    assert decision.promote
    assert decision.reasons


def test_unpaired_scores_are_an_error():
    with pytest.raises(ValueError, match="expected 2 after; found 1"):
        worse_p_value([1.0, 1.0], [1.0])


NOTHING = {"learned_p": 0.8, "known_p": 0.8, "alone_p": 0.8}  # told, by any of them


def _evidence(right: int = 90, of: int = 100, **given: object) -> LabelEvidence:
    """Of an honest session: the old model is right on 90 of 100, as on the anchors."""
    honest = {"learned_p": 1e-9, "known_p": 1e-9, "alone_p": 1e-20, "novelty": None}
    honest |= {"tables": (Table(right, of, 36, 40),)}
    honest |= {"before": [1.0] * 20, "after": [1.0] * 20}
    honest |= {"sure_before": [0.9] * 40, "sure_after": [0.5] * 40}
    return LabelEvidence(**(honest | given))  # type: ignore[arg-type]


def _reasons(labels: LabelEvidence) -> tuple[str, ...]:
    return decide(CONFIG, [1.0], holdout_before=[1.0], labels=labels).reasons


def test_labels_that_do_not_follow_from_inputs_are_refused():
    (reason,) = _reasons(_evidence(learned_p=0.3, known_p=0.2, alone_p=0.4))
    assert "do not follow from its inputs (p = 0.2 by chance)" in reason
    # one of the three is enough; and where nothing can be told, nothing is said
    for told in ({"learned_p": 1e-9}, {"known_p": 1e-9}, {"alone_p": 1e-13, "novelty": 1.7}):
        assert _reasons(_evidence(**NOTHING | told)) == ()
    assert len(_reasons(_evidence(**NOTHING | {"alone_p": 1e-11, "novelty": 1.7}))) == 1
    assert _reasons(_evidence(learned_p=None, known_p=None, alone_p=None)) == ()


def test_a_change_of_inputs_shows_in_few_samples_by_themselves():
    """What was known before drowns them: hardly learned, but better than before, and not by chance."""
    drift = {"right": 0, "before": [0.0] * 20, "after": [1.0] * 12 + [0.0] * 8}
    drift["novelty"] = 1.7
    assert len(_reasons(_evidence(**NOTHING | drift))) == 2
    assert _reasons(_evidence(**NOTHING | drift | {"alone_p": 1e-13})) == ()
    # inputs as they were, and other labels: what is known contradicts them
    for same in (1.5, None):
        assert (
            len(_reasons(_evidence(**NOTHING | drift | {"alone_p": 1e-13, "novelty": same}))) == 2
        )
    # labels that follow from inputs in another way, which the session does not teach: not to be trusted
    nothing_gained = drift | {"after": [0.0] * 20}
    assert len(_reasons(_evidence(**NOTHING | nothing_gained | {"alone_p": 1e-13}))) == 1


def test_labels_that_contradict_the_serving_model_are_refused_unless_they_can_be_learned():
    wrong = {"right": 10, "known_p": 0.9}
    untold = {"learned_p": None, "known_p": None, "alone_p": None}
    (reason,) = _reasons(_evidence(**wrong))
    assert "it has 10 of 100 right, where 90 would be as on the anchors" in reason
    drift = {"before": [0.0] * 20, "after": [1.0] * 12 + [0.0] * 8}
    assert _reasons(_evidence(**wrong, **drift)) == ()
    # better on what was held out, but all of one label: a constant answer is better too
    assert len(_reasons(_evidence(**wrong | untold, **drift))) == 1


def test_a_little_less_right_than_on_the_anchors_is_no_contradiction():
    assert _reasons(_evidence(80)) == ()


def test_more_of_the_labels_that_the_model_is_bad_at_is_no_contradiction():
    tables = (Table(9, 10, 81, 90), Table(27, 90, 3, 10))
    assert _reasons(_evidence(tables=tables)) == ()
    together = (Table(36, 100, 84, 100),)
    assert len(_reasons(_evidence(tables=together))) == 1


def test_a_small_session_has_the_benefit_of_the_doubt_while_the_anchors_stay_sure():
    small = {"right": 6, "of": 12} | NOTHING
    assert len(_reasons(_evidence(**small))) == 2
    kept = {"sure_after": [0.61] * 40}
    assert _reasons(_evidence(**small, **kept)) == ()
    assert len(_reasons(_evidence(**small, sure_after=[0.59] * 40))) == 2
    # not one that is large enough to have shown what can be learned, nor of one label, nor of new ones
    assert len(_reasons(_evidence(**small | {"right": 50, "of": 200}, **kept))) == 2
    untold = {"learned_p": None, "known_p": None, "alone_p": None}
    assert len(_reasons(_evidence(**small | untold, **kept))) == 1
    assert len(_reasons(_evidence(**small, **kept, tables=()))) == 1
    # one whose labels follow is no longer that small: less may be lost
    in_part = _evidence(75, learned_p=1e-9)
    assert in_part.contradicted_p < 0.05
    for kept_there, refused in ((0.82, 1), (0.845, 0)):
        found = _reasons(replace(in_part, sure_after=[kept_there] * 40))
        assert len(found) == refused
    # nor where the kind of task has no probabilities
    assert len(_reasons(_evidence(**small, sure_before=(), sure_after=()))) == 2


def test_the_figures_say_what_speaks_for_the_labels():
    figures = decide(CONFIG, [1.0], holdout_before=[1.0], labels=_evidence()).figures
    assert (figures.learned_p, figures.known_p, figures.alone_p) == (1e-9, 1e-9, 1e-20)
    assert figures.contradicted_p == smaller_shares_p([Table(90, 100, 36, 40)])
    assert figures.gained_p == 1.0
    assert (figures.sure_before, figures.sure_after) == (pytest.approx(0.9), pytest.approx(0.5))


@pytest.mark.parametrize("size", [1.01, math.inf, math.nan])
def test_an_update_larger_than_the_weights_is_refused(size):
    decision = decide(CONFIG, [1.0], holdout_before=[1.0], updates={"a": 0.1, "b": size})
    assert "the update of b is" in decision.reasons[0]
    assert decide(CONFIG, [1.0], holdout_before=[1.0], updates={"a": 1.0}).promote
