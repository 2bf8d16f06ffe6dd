"""A fall of the mean is found, a stable stream is left in peace, and the sums are what the paper says."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_pslora.core.drift import BETS, DriftDetector
from edge_pslora.errors import UsageError


def _stable(share: float, count: int, seed: int = 0) -> list[float]:
    return (np.random.default_rng(seed).random(count) < share).astype(float).tolist()


def _watching(share: float, **options: float) -> DriftDetector:
    detector = DriftDetector(**options)
    for score in _stable(share, 500):
        assert not detector.update(score)
    return detector


@given(st.lists(st.floats(0, 1), max_size=40), st.floats(0.05, 0.99))
def test_the_evidence_is_the_sum_over_all_starts(scores, share):
    """R_n = sum over starts k of prod_{i >= k} (1 + l (m - x_i)), written out."""
    detector = _watching(share, limit=1e300)
    normal = detector.normal
    for score in scores:
        detector.update(score)
    for evidence, bet in zip(detector.to_dict()["evidence"], BETS, strict=True):
        factors = [1 + bet / (1 - normal) * (normal - score) for score in scores]
        assert all(factor > 0 for factor in factors)
        expected = sum(math.prod(factors[k:]) for k in range(len(factors)))
        assert evidence == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("normal", [0.05, 0.5, 0.9, 1.0])
def test_a_bet_does_not_pay_while_the_mean_is_normal(normal):
    """What the promise rests on: the mean factor is at most 1 for any distribution of that mean."""
    detector = _watching(normal)
    for share in BETS:
        largest = 1 / (1 - detector.normal)
        assert 1 + share * largest * (detector.normal - normal) <= 1 + 1e-12


def test_a_step_is_found_and_the_new_level_becomes_normal():
    detector = _watching(0.9)
    found = [i for i, score in enumerate(_stable(0.6, 700, 1)) if detector.update(score)]
    assert len(found) == 1
    assert found[0] < 200
    assert detector.normal == pytest.approx(0.53, abs=0.05)


def test_what_is_tolerated_gives_no_alarm():
    fall = _stable(0.6, 2000, 1)
    assert not any(map(_watching(0.9, tolerance=0.4).update, fall))
    assert any(map(_watching(0.9).update, fall))


def test_nothing_is_said_before_the_reference_is_complete():
    detector = DriftDetector(reference=50)
    for score in _stable(0.5, 49):
        assert not detector.update(score)
        assert (detector.ready, detector.normal) == (False, None)
    detector.update(1.0)
    assert detector.ready


def test_a_reference_without_an_error_is_not_certainty():
    detector = _watching(1.0)
    assert detector.normal < 1
    assert not any(detector.update(0.0) for _ in range(2))
    assert any(detector.update(0.0) for _ in range(5))


def test_a_device_that_restarts_goes_on():
    scores = _stable(0.7, 300, 2)
    one = _watching(0.9)
    answers = [one.update(score) for score in scores]
    other = _watching(0.9)
    for score, answer in zip(scores, answers, strict=True):
        other = DriftDetector.from_dict(json.loads(json.dumps(other.to_dict())))
        assert other.update(score) == answer
    assert any(answers)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -0.1, 1.1])
def test_what_is_no_score_is_refused_and_changes_nothing(score):
    detector = _watching(0.9)
    before = detector.to_dict()
    with pytest.raises(UsageError, match="a score: expected a number from 0 to 1"):
        detector.update(score)
    assert detector.to_dict() == before


@pytest.mark.parametrize("options", [{"reference": 10}, {"tolerance": 1.0}, {"limit": 0.5}])
def test_bad_settings(options):
    with pytest.raises(UsageError):
        DriftDetector(**options)
