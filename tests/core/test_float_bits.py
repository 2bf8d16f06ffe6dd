"""Finite or not, from the bits alone: every half, and the edges of the wider floats."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_pslora.core.float_bits import bits_of, has_bits, is_finite


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_half(dtype):
    bits = bits_of(np.dtype(dtype))
    values = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):  # signalling NaN
        expected = np.isfinite(values)
    for index, finite in enumerate(expected):
        assert is_finite(values[index : index + 1], bits) == finite
    assert is_finite(values[expected], bits)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
def test_any_pattern(dtype, data):
    word = {4: np.uint32, 8: np.uint64}[np.dtype(dtype).itemsize]
    values = data.draw(hnp.arrays(word, st.integers(0, 9))).view(dtype)
    assert is_finite(values, bits_of(values.dtype)) == bool(np.isfinite(values).all())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_edges(dtype):
    limits = np.finfo(dtype)
    bits = bits_of(np.dtype(dtype))
    good = np.array(
        [limits.max, limits.min, limits.tiny, 0, -0.0, limits.smallest_subnormal], dtype
    )
    assert is_finite(good, bits)
    for bad in (np.inf, -np.inf, np.nan, -np.nan):
        assert not is_finite(np.array([bad, 0], dtype), bits)
        assert not is_finite(np.array([-1, bad], dtype), bits)


def test_which_dtypes_have_ordered_bits():
    assert has_bits(np.dtype(ml_dtypes.bfloat16))
    for other in (ml_dtypes.float8_e4m3fn, np.int32, ">f4", np.bool_):
        assert not has_bits(np.dtype(other))
