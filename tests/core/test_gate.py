"""The gate: refuses real harm, lets noise and progress pass."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_pslora.config import GateConfig
from edge_pslora.core.gate import decide, worse_p_value

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
