"""The p values against permutations and tables written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_pslora.core.agreement import Table, association_p, smaller_shares_p


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


tables = st.builds(
    lambda right, wrong, elsewhere, wrong_elsewhere: Table(
        right, right + wrong, elsewhere, elsewhere + wrong_elsewhere
    ),
    *(st.integers(0, 6),) * 4,
)


def _ways(table: Table, right: int) -> int:
    """In how many of the choices of its samples that could be `here` so many are right."""
    all_right = table.right + table.right_elsewhere
    wrong = table.of + table.of_elsewhere - all_right
    return math.comb(all_right, right) * math.comb(wrong, table.of - right)


@given(st.lists(tables, max_size=3))
def test_label_by_label_is_every_choice_of_samples_written_out(given_tables):
    seen = sum(table.right for table in given_tables)
    few = total = 0
    for rights in itertools.product(*(range(table.of + 1) for table in given_tables)):
        ways = math.prod(_ways(t, r) for t, r in zip(given_tables, rights, strict=True))
        total += ways
        few += ways if sum(rights) <= seen else 0
    assert smaller_shares_p(given_tables) == pytest.approx(few / total)


def test_shares():
    assert smaller_shares_p([]) == 1.0
    assert smaller_shares_p([Table(0, 0, 5, 10)]) == 1.0
    assert smaller_shares_p([Table(0, 10, 0, 0)]) == 1.0
    assert smaller_shares_p([Table(10, 10, 5, 10)]) == pytest.approx(1.0)
    assert smaller_shares_p([Table(100, 200, 38, 40)]) < 1e-6
    assert smaller_shares_p([Table(180, 200, 38, 40)]) > 0.1
    assert smaller_shares_p([Table(0, 3000, 5000, 5000)]) == 0.0


def test_more_of_the_hard_label_is_no_smaller_share():
    """Right on 9 of 10 of one label and 3 of 10 of the other, here as elsewhere; the second is frequent."""
    easy, hard = Table(9, 10, 81, 90), Table(27, 90, 3, 10)
    assert smaller_shares_p([easy, hard]) > 0.5
    assert smaller_shares_p([Table(36, 100, 84, 100)]) < 1e-9
