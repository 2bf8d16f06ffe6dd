"""Truncated factors: the error is what it says, and the least rank is taken."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_pslora.exporters.low_rank import truncate

sizes = st.integers(1, 12)


def matrix(out: int, size: int, rank: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(out, rank)) @ rng.normal(size=(rank, size))).astype(np.float32)


@given(sizes, sizes, st.integers(1, 6), st.integers(1, 12), st.integers(0, 99))
def test_reported_error_is_the_true_one(
    out: int, size: int, rank: int, cap: int, seed: int
) -> None:
    delta = matrix(out, size, rank, seed)
    low = truncate(delta, cap)
    assert low.A.shape == (low.A.shape[0], size)
    assert low.B.shape == (out, low.A.shape[0])
    assert 1 <= low.A.shape[0] <= min(cap, out, size)
    true = np.linalg.norm(delta - low.B @ low.A) / np.linalg.norm(delta)
    assert abs(true - low.error) <= 1e-5
    assert low.error <= 1e-3 or low.A.shape[0] == cap


@given(sizes, sizes, st.integers(1, 6), st.integers(0, 99))
def test_an_update_of_low_rank_is_found_at_that_rank(
    out: int, size: int, rank: int, seed: int
) -> None:
    low = truncate(matrix(out, size, rank, seed), 64)
    assert low.A.shape[0] <= rank
    assert low.error <= 1e-3


def test_a_zero_update_stays_zero() -> None:
    low = truncate(np.zeros((3, 5), np.float32), 8)
    assert (low.A.shape, low.B.shape, low.error) == ((1, 5), (3, 1), 0.0)
    assert not (low.B @ low.A).any()
