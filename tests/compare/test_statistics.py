"""Intervals, paired tests, Holm's correction and shares of a gap, against scipy and literal twins."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from edge_pslora.compare import extra, statistics
from edge_pslora.compare.statistics import (
    DOUBTFUL_GAP,
    NO_SPREAD,
    ONE_SEED,
    estimate,
    gap_share,
    holm,
    judged,
    paired,
)
from edge_pslora.errors import UsageError

OURS = [0.81, 0.84, 0.79, 0.85, 0.83]
THEIRS = [0.78, 0.80, 0.79, 0.80, 0.81]


def literal_holm(p_values):
    """Holm's procedure as he states it: reject the smallest while p_(k) <= alpha / (m - k); the
    corrected p is the smallest alpha that rejects. Tried out over all alphas that matter."""
    alphas = sorted({min(1.0, (m * p)) for p in p_values for m in range(1, len(p_values) + 1)})

    def rejected(alpha):
        order = sorted(range(len(p_values)), key=lambda i: p_values[i])
        out = set()
        for k, i in enumerate(order):
            if (len(order) - k) * p_values[i] > alpha:
                break
            out.add(i)
        return out

    return [
        next((alpha for alpha in alphas if i in rejected(alpha)), 1.0) for i in range(len(p_values))
    ]


def test_the_interval_is_scipys():
    found = estimate(OURS)
    low, high = stats.t.interval(0.95, 4, loc=found.mean, scale=stats.sem(OURS))
    assert found.mean == pytest.approx(0.824)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    assert found.seeds == 5
    assert found.note == ""


def test_a_known_interval_by_hand():
    # mean 2, s = 1, n = 3, t(0.975, 2) = 4.302653: half = 4.302653 / sqrt(3)
    found = estimate([1.0, 2.0, 3.0])
    assert found.high - found.mean == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)


def test_one_seed_has_no_interval_and_says_so():
    found = estimate([0.5])
    assert (found.mean, found.low, found.high, found.note) == (0.5, None, None, ONE_SEED)
    alone = paired([0.5], [0.4])
    assert (alone.p, alone.effect) == (None, None)
    assert "one seed" in alone.note
    assert judged({"x": alone})["x"].verdict == "not shown"


def test_the_paired_test_is_scipys_and_looks_at_differences():
    found = paired(OURS, THEIRS)
    assert found.p == pytest.approx(stats.ttest_rel(OURS, THEIRS).pvalue)
    differences = [0.03, 0.04, 0.0, 0.05, 0.02]
    mean = sum(differences) / 5
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / 4)
    assert found.effect == pytest.approx(mean / deviation)
    assert found.difference.mean == pytest.approx(mean)
    # the other way round: the same p, the opposite sign
    back = paired(THEIRS, OURS)
    assert back.p == pytest.approx(found.p)
    assert back.effect == pytest.approx(-found.effect)


def test_no_spread_is_said_and_is_no_verdict():
    # 0.1 more in every seed, but for rounding: scipy would warn and give p = 0
    found = paired([0.6, 0.7, 0.8], [0.5, 0.6, 0.7])
    assert (found.p, found.effect, found.note) == (None, None, NO_SPREAD)
    assert paired([0.5] * 3, [0.5] * 3).note == NO_SPREAD
    assert judged({"x": found})["x"].verdict == "not shown"


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.001, 0.5, 0.9], [0.003, 1.0, 1.0]),
        ([0.02], [0.02]),
        ([], []),
        ([0.01, None, 0.04], [0.02, None, 0.04]),  # what was not tested takes no share
    ],
)
def test_holm_by_hand(p_values, expected):
    found = holm(p_values)
    assert [p is None for p in found] == [p is None for p in expected]
    assert [p for p in found if p is not None] == pytest.approx(
        [p for p in expected if p is not None]
    )


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_step_down_procedure(p_values):
    assert holm(p_values) == pytest.approx(literal_holm(p_values), abs=1e-12)


def test_verdicts_of_a_family():
    family = {
        "far below": paired(OURS, [0.5, 0.52, 0.49, 0.51, 0.5]),
        "far above": paired(OURS, [0.95, 0.96, 0.94, 0.96, 0.95]),
        "as good": paired(OURS, [0.82, 0.83, 0.80, 0.84, 0.83]),
        "one of many": paired(OURS, THEIRS),
    }
    found = judged(family)
    assert {name: j.verdict for name, j in found.items()} == {
        "far below": "better",
        "far above": "worse",
        "as good": "not shown",
        "one of many": "not shown",
    }
    # alone it would have been a verdict: the correction is what takes it away
    assert family["one of many"].p < 0.05 < found["one of many"].p
    assert judged({"alone": family["one of many"]})["alone"].verdict == "better"


def test_the_share_of_the_gap_and_its_interval_by_a_search():
    sequential, joint = [0.60, 0.63, 0.58, 0.61, 0.62], [0.84, 0.86, 0.83, 0.86, 0.85]
    found = gap_share(sequential, joint, OURS)
    assert found.mean == pytest.approx((0.824 - 0.608) / (0.848 - 0.608))

    def p(share):  # what the interval is defined by
        reached = [s + share * (j - s) for s, j in zip(sequential, joint, strict=True)]
        return stats.ttest_rel(OURS, reached).pvalue

    assert p(found.low) == pytest.approx(0.05, abs=1e-9)
    assert p(found.high) == pytest.approx(0.05, abs=1e-9)
    assert p(found.mean) == pytest.approx(1)
    assert found.low < found.mean < found.high


def test_where_there_is_no_gap_there_is_no_share():
    assert gap_share([0.8, 0.9], [0.7, 0.8], [0.9, 0.9]) is None
    assert gap_share([0.8], [0.8], [0.9]) is None
    doubtful = gap_share([0.5, 0.9, 0.6], [0.8, 0.7, 0.7], [0.7, 0.9, 0.7])
    assert (doubtful.low, doubtful.high, doubtful.note) == (None, None, DOUBTFUL_GAP)
    assert gap_share([0.5], [0.9], [0.7]).mean == pytest.approx(0.5)
    assert gap_share([0.5], [0.9], [0.7]).note == ONE_SEED


def test_a_ratio_without_spread_has_an_interval_of_no_width():
    found = gap_share([0.5, 0.6, 0.7], [0.9, 1.0, 1.1], [0.7, 0.8, 0.9])
    assert (found.low, found.mean, found.high) == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    "call",
    [
        lambda: estimate([]),
        lambda: estimate([float("nan")]),
        lambda: paired([0.1, 0.2], [0.1]),
        lambda: paired([0.1, math.inf], [0.1, 0.2]),
        lambda: gap_share([0.1], [0.2, 0.3], [0.1]),
        lambda: holm([1.5]),
        lambda: holm([float("nan")]),
    ],
)
def test_what_is_no_figure_is_refused(call):
    with pytest.raises(ValueError, match="expected"):
        call()


def test_without_scipy_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'edge-pslora\[compare\]'"):
        estimate([0.1, 0.2])
    assert statistics.estimate([0.1]).mean == 0.1  # one seed needs no distribution


def test_importing_it_imports_no_scipy():
    code = "import sys, edge_pslora.compare.statistics; print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
