"""The p values against permutations and tables written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_pslora.core.agreement import association_p, smaller_share_p


def _columns(labels: list[int]) -> np.ndarray:
    return (np.array(labels)[:, None] == np.arange(3)).astype(np.float64)


@given(st.data(), st.integers(2, 6))
def test_mean_and_variance_are_those_of_all_permutations(data, count):
    labels = st.lists(st.integers(0, 2), min_size=count, max_size=count)
    answers, targets = data.draw(labels), data.draw(labels)
    found = association_p(_columns(answers), _columns(targets))
    agreed = [
        sum(a == t for a, t in zip(answers, shuffled, strict=True))
        for shuffled in itertools.permutations(targets)
    ]
    if len(set(targets)) == 1:
        assert found is None
        return
    spread = np.std(agreed)
    if spread < 1e-9:
        assert found == 1.0
        return
    seen = sum(a == t for a, t in zip(answers, targets, strict=True))
    z = (seen - np.mean(agreed)) / spread
    assert found == pytest.approx(0.5 * math.erfc(z / math.sqrt(2)), abs=1e-9)


def test_what_so_few_can_tell():
    """Four samples that are all right prove nothing at one in a thousand; thirty do."""
    few, many = _columns([0, 1] * 2), _columns([0, 1] * 15)
    assert association_p(few, few) < 0.1
    assert association_p(few, few, 0.001) is None
    assert association_p(many, many, 0.001) < 1e-6
    assert association_p(many, _columns([0] * 30), 0.001) is None
    assert association_p(many[:0], many[:0]) is None


def test_a_rare_label_that_is_found_counts():
    """Always the most frequent label is right for 95 of 100, and says nothing."""
    targets = _columns([1] * 5 + [0] * 95)
    assert association_p(_columns([0] * 100), targets) == 1.0
    assert association_p(_columns([1] * 8 + [0] * 92), targets) < 1e-6


def test_chance_is_as_frequent_as_it_says():
    rng = np.random.default_rng(0)
    found = [
        association_p(_columns(rng.integers(0, 3, 40)), _columns(rng.integers(0, 3, 40)))
        for _ in range(400)
    ]
    assert np.mean(np.array(found) < 0.05) == pytest.approx(0.05, abs=0.03)


@given(st.integers(0, 12), st.integers(1, 12), st.integers(0, 12), st.integers(1, 12))
def test_fisher_is_the_table_written_out(right, of, elsewhere, of_elsewhere):
    right, elsewhere = min(right, of), min(elsewhere, of_elsewhere)
    marks = [1] * (right + elsewhere) + [0] * (of + of_elsewhere - right - elsewhere)
    total = math.comb(len(marks), of)
    expected = sum(
        math.comb(right + elsewhere, k) * math.comb(len(marks) - right - elsewhere, of - k)
        for k in range(right + 1)
    )
    assert smaller_share_p(right, of, elsewhere, of_elsewhere) == pytest.approx(expected / total)


def test_shares():
    assert smaller_share_p(0, 0, 5, 10) == 1.0
    assert smaller_share_p(10, 10, 5, 10) == 1.0
    assert smaller_share_p(100, 200, 38, 40) < 1e-6
    assert smaller_share_p(180, 200, 38, 40) > 0.1
