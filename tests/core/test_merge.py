"""Merge rules: pure, equal to the literal T-way reference, ties to the older, never non-finite."""

from __future__ import annotations

from typing import get_args

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_pslora.config import MERGE_RULES, MergeRule
from edge_pslora.core import merge as module
from edge_pslora.core.merge import merge_into, merge_step
from edge_pslora.errors import EdgePsloraError, UsageError
from tests.reference_merge import literal_step, merge_all

# multiples of 1/4 in a small range: sums are exact in float32 and ties are frequent
_exact = st.integers(-8, 8).map(lambda k: k / 4)
_stacks = hnp.array_shapes(min_dims=2, max_dims=4, max_side=4).flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=_exact)
)
_rules = st.sampled_from(MERGE_RULES)
_WORDS = {np.float32: np.uint32, np.float64: np.uint64}


def same_bits(one: np.ndarray, other: np.ndarray) -> None:
    assert one.dtype == other.dtype
    word = _WORDS[one.dtype.type]
    np.testing.assert_array_equal(one.view(word), other.view(word))


def fold(rule: MergeRule, deltas: np.ndarray) -> np.ndarray:
    merged = np.zeros_like(deltas[0])
    running = np.zeros_like(deltas[0])
    for session, delta in enumerate(deltas, start=1):
        running = running + delta
        merged = merge_step(rule, merged, running if rule == "cumulative" else delta, session)
    return merged


@given(rule=_rules, deltas=_stacks)
def test_fold_equals_t_way_merge(rule, deltas):
    tolerance = 1e-6 if rule == "average" else 0.0  # only the mean divides, hence rounds
    np.testing.assert_allclose(fold(rule, deltas), merge_all(rule, deltas), rtol=0, atol=tolerance)


@given(rule=_rules, deltas=hnp.arrays(np.float64, (5, 3), elements=st.floats(-1e3, 1e3)))
def test_fold_equals_t_way_merge_in_float64(rule, deltas):
    if rule in ("cumulative", "constructive"):
        # both add in the same order, so equality is exact; a tolerance would hide a flipped branch
        np.testing.assert_array_equal(fold(rule, deltas), merge_all(rule, deltas))
    else:
        np.testing.assert_allclose(fold(rule, deltas), merge_all(rule, deltas), atol=1e-10)


@given(rule=_rules, stack=_stacks, session=st.integers(1, 9))
def test_arguments_are_never_changed_and_never_shared(rule, stack, session):
    older, newer = stack[0].copy(), stack[-1].copy()
    older.flags.writeable = newer.flags.writeable = False
    result = merge_step(rule, older, newer, session)
    np.testing.assert_array_equal(older, stack[0])
    np.testing.assert_array_equal(newer, stack[-1])
    assert not np.shares_memory(result, older)
    assert not np.shares_memory(result, newer)
    np.testing.assert_array_equal(result, merge_step(rule, older, newer, session))


@given(rule=_rules, stack=_stacks)
def test_merging_one_task_returns_its_delta(rule, stack):
    np.testing.assert_array_equal(merge_step(rule, np.zeros_like(stack[0]), stack[0], 1), stack[0])


@given(rule=st.sampled_from(["max_magnitude", "cumulative", "average"]), stack=_stacks)
def test_the_same_update_again_changes_nothing(rule, stack):
    np.testing.assert_array_equal(merge_step(rule, stack[0], stack[0], 2), stack[0])


@given(rule=st.sampled_from(["max_magnitude", "cumulative", "constructive", "none"]), stack=_stacks)
def test_a_zero_update_keeps_the_past(rule, stack):
    np.testing.assert_array_equal(merge_step(rule, stack[0], np.zeros_like(stack[0]), 2), stack[0])


@given(rule=st.sampled_from(["max_magnitude", "cumulative", "constructive"]), stack=_stacks)
def test_magnitudes_never_shrink(rule, stack):
    assert np.all(np.abs(merge_step(rule, stack[0], stack[-1], 2)) >= np.abs(stack[0]))


def test_ties_keep_the_older():
    older, newer = np.float32([1, -2, 0]), np.float32([-1, 2, 0])
    np.testing.assert_array_equal(merge_step("max_magnitude", older, newer, 2), older)
    np.testing.assert_array_equal(merge_step("cumulative", older, newer, 2), older)


def test_constructive_accepts_a_sum_as_large_as_the_past():
    older, newer = np.float32([1.0, 1.0, 1.0]), np.float32([-2.0, -1.5, 0.5])
    np.testing.assert_array_equal(merge_step("constructive", older, newer, 2), [-1.0, 1.0, 1.5])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("rule", get_args(MergeRule))
def test_halves_are_upcast(rule, dtype):
    older, newer = np.ones(3, dtype=dtype), np.full(3, 2, dtype=dtype)
    expected = np.float64 if dtype is np.float64 else np.float32
    assert merge_step(rule, older, newer, 2).dtype == expected


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", get_args(MergeRule))
@pytest.mark.parametrize("side", [0, 1])
def test_non_finite_values_are_an_error(rule, bad, side):
    arguments = [np.zeros(4, np.float32), np.zeros(4, np.float32)]
    arguments[side][2] = bad
    with pytest.raises(EdgePsloraError, match="1 of 4 not finite"):
        merge_step(rule, *arguments, 2)


def test_overflow_is_an_error_not_an_infinity():
    huge = np.full(2, 3e38, np.float32)
    with pytest.raises(EdgePsloraError, match="sum of updates"):
        merge_step("none", huge, huge, 2)


def test_shape_rule_and_session_are_checked():
    zeros = np.zeros((2, 3), np.float32)
    with pytest.raises(EdgePsloraError, match=r"equal shapes, \(2, 3\); found \(3,\)"):
        merge_step("none", zeros, np.zeros(3, np.float32), 1)
    with pytest.raises(EdgePsloraError, match="count from 1"):
        merge_step("none", zeros, zeros, 0)
    with pytest.raises(UsageError, match="max_magnitude"):
        merge_step("mean", zeros, zeros, 1)  # type: ignore[arg-type]


@st.composite
def hard_pairs(draw):
    """Two arrays of one shape, any finite patterns, with ties, doubles and neighbours planted."""
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    width = np.dtype(dtype).itemsize * 8
    values = st.floats(allow_nan=False, allow_infinity=False, width=width)
    older = draw(hnp.arrays(dtype, st.integers(1, 40), elements=values))
    newer = draw(hnp.arrays(dtype, older.shape, elements=values))
    kinds = draw(hnp.arrays(np.int8, older.shape, elements=st.integers(0, 9)))
    with np.errstate(over="ignore"):
        planted = [-older, older, -2 * older, 2 * older, -older / 2, 0 * older, -0.0 * older]
        planted += [np.nextafter(-2 * older, 0), np.nextafter(-older, 0)]
    for kind, plant in enumerate(planted, start=1):
        newer = np.where((kinds == kind) & np.isfinite(plant), plant, newer).astype(dtype)
    return older, newer


@given(
    rule=_rules, pair=hard_pairs(), session=st.integers(1, 5), cache=st.sampled_from([64, 1 << 16])
)
def test_every_bit_is_that_of_the_literal_definition(rule, pair, session, cache):
    older, newer = pair
    expected = literal_step(rule, older, newer, session)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CACHE_BYTES", cache)  # blocks of a few entries, with a remainder
        if not np.isfinite(expected).all():
            with pytest.raises(EdgePsloraError, match="sum of updates"):
                merge_step(rule, older, newer, session)
            return
        same_bits(merge_step(rule, older, newer, session), expected)
        in_place = older.copy()
        merge_into(in_place, rule, in_place, newer, session)
        same_bits(in_place, expected)


@pytest.mark.parametrize("rule", MERGE_RULES)
def test_every_pair_of_special_values_is_as_defined(rule):
    tiny, huge = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
    ones = np.float32([0, 1, 2, 3, np.nextafter(np.float32(1), np.float32(2)), huge, huge / 2])
    small = np.float32([tiny, 2 * tiny, 3 * tiny, np.finfo(np.float32).tiny])
    values = np.concatenate([ones, small])
    values = np.concatenate([values, -values])  # with -0.0
    older, newer = (grid.ravel() for grid in np.meshgrid(values, values))
    expected = literal_step(rule, older, newer, 3)
    kept = np.isfinite(expected)
    same_bits(merge_step(rule, older[kept], newer[kept], 3), expected[kept])


@pytest.mark.parametrize("rule", MERGE_RULES)
def test_many_blocks_and_any_strides(rule):
    rng = np.random.default_rng(3)
    size = 3 * module._CACHE_BYTES // 4 // 3 + 17  # more than two blocks, not a whole number
    older, newer = rng.normal(size=(2, size)).astype(np.float32)
    same_bits(merge_step(rule, older, newer, 2), literal_step(rule, older, newer, 2))
    grid = older[: 60 * 70].reshape(60, 70)
    cut, turned = grid[::2, 3:], newer[: 67 * 30].reshape(67, 30).T
    same_bits(merge_step(rule, cut, turned, 2), literal_step(rule, cut, turned, 2))
    assert merge_step(rule, older[:0], newer[:0], 1).shape == (0,)
    assert merge_step(rule, older[0].reshape(()), newer[0].reshape(()), 1).shape == ()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("rule", MERGE_RULES)
def test_halves_are_merged_as_their_float32_values(rule, dtype):
    older, newer = np.random.default_rng(4).normal(size=(2, 500)).astype(dtype)
    same_bits(merge_step(rule, older, newer, 2), literal_step(rule, older, newer, 2))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", MERGE_RULES)
@pytest.mark.parametrize("other", [0.0, -1.0, 3e38, np.inf])
def test_no_rule_swallows_what_is_not_finite_in_place_either(rule, bad, other):
    for older, newer in ((bad, other), (other, bad)):
        merged = np.full(5, older, np.float32)
        with pytest.raises(EdgePsloraError, match="5 of 5 not finite"):
            merge_into(merged, rule, merged, np.full(5, newer, np.float32), 2)


def test_output_must_fit():
    zeros = np.zeros((4, 3), np.float32)
    for out in (np.zeros((3, 4), np.float32), np.zeros((4, 3)), np.zeros((3, 4), np.float32).T):
        with pytest.raises(EdgePsloraError, match="a contiguous float32 array of shape"):
            merge_into(out, "none", zeros, zeros, 1)
