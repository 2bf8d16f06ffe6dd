"""Forms of factors: equal to a literal rounding, idempotent, and as close as the form allows."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_pslora.config import FACTOR_FORMS, LoraConfig
from edge_pslora.core.factor_forms import (
    LEVELS,
    from_integers,
    join_bits,
    rounded,
    split_bits,
    to_bf16,
    to_integers,
)
from edge_pslora.errors import EdgePsloraError, UsageError
from tests.reference_replay import literal_bf16, literal_integers

_finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
_wide = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=_finite
)
_usual = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.floats(-3, 3, width=32),
)


def same_bits(one: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))


@given(_wide)
def test_bf16_is_the_nearest_for_a_literal_search_and_for_ml_dtypes(values):
    found = to_bf16(values)
    literal = [literal_bf16(v) for v in values.ravel()]
    same_bits(found, np.array(literal, np.float32).reshape(values.shape))
    same_bits(found, values.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize("form", LEVELS)
@given(factor=_usual)
def test_integers_are_the_literal_rounding(form, factor):
    numbers, scales = to_integers(form, factor)
    for row, found, scale in zip(factor, numbers, scales, strict=True):
        wanted, wanted_scale = literal_integers(row, LEVELS[form])
        assert found.tolist() == wanted
        assert scale == wanted_scale
    assert np.abs(numbers.astype(int)).max() <= LEVELS[form]


@given(hnp.arrays(np.int16, st.integers(0, 9), elements=st.integers(-2047, 2047)))
def test_twelve_bits_come_back(numbers):
    high, low = split_bits(numbers)
    assert (high.size, low.size) == (numbers.size, (numbers.size + 1) // 2)
    assert np.array_equal(join_bits(high, low), numbers)


@given(st.one_of(_usual, _wide.filter(lambda v: bool((np.abs(v) < 1e38).all()))))
def test_what_was_rounded_once_stays_as_it_is(factor):
    for form in FACTOR_FORMS:
        once = rounded(form, factor)
        same_bits(rounded(form, once), once)
    for form in LEVELS:
        numbers, scales = to_integers(form, rounded(form, factor))
        again, same = to_integers(form, from_integers(numbers, scales))
        assert np.array_equal(again, numbers)
        same_bits(same, scales)


@given(_usual)
def test_no_number_moves_further_than_half_a_step(factor):
    for form, levels in LEVELS.items():
        step = np.abs(factor).max(axis=1, keepdims=True) / levels * (1 + 2.0**-12)
        nothing = levels * 2.0**-110  # a row below that is zeros
        assert (np.abs(rounded(form, factor) - factor) <= step / 2 + nothing).all()
    assert (np.abs(rounded("bf16", factor) - factor) <= np.abs(factor) * 2.0**-8 + 1e-38).all()
    same_bits(rounded("float32", factor), factor)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad):
    factor = np.array([[1.0, bad]], np.float32)
    for form in FACTOR_FORMS:
        with pytest.raises(EdgePsloraError, match="NaN or infinity"):
            rounded(form, factor)


def test_rows_of_almost_nothing_are_zeros():
    factor = np.array([[1e-37, -1e-38], [0.0, 0.0], [1.0, 0.5]], np.float32)
    numbers, scales = to_integers("int8", factor)
    assert not numbers[:2].any()
    assert scales.tolist()[:2] == [0.0, 0.0]
    assert numbers[2].tolist() == [127, 64]


def test_an_unknown_form_is_wrong_use():
    with pytest.raises(UsageError, match="--factors"):
        LoraConfig(factors="int4")
