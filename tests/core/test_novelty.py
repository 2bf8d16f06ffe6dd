"""Whether inputs are new, told by statistics: invariances, and against distances written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_pslora.core.analytic_head import HeadStatistics, add_samples, empty_statistics
from edge_pslora.core.novelty import SOFTENED, novelty


def _statistics(features: torch.Tensor) -> HeadStatistics:
    nothing = empty_statistics(features.shape[1], ("a",))
    return add_samples(nothing, features, torch.zeros(len(features), 1))


def _features(seed: int, n: int = 300, d: int = 12) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((n, d)) * np.geomspace(1, 0.05, d) + 3)


def _literally(old: np.ndarray, new: np.ndarray) -> float:
    covariance = np.cov(old.T, bias=True)
    inverse = np.linalg.inv(
        covariance + SOFTENED * np.diag(covariance).mean() * np.eye(old.shape[1])
    )
    mean = old.mean(axis=0)
    far, own = (
        np.mean([(row - mean) @ inverse @ (row - mean) for row in rows]) for rows in (new, old)
    )
    return float(far / (own / (1 - own / len(old))))


@given(st.integers(0, 50))
def test_it_is_the_mean_distance_over_that_of_others_like_the_samples(seed: int):
    old, new = _features(seed), _features(seed + 1, n=40)
    found = novelty(_statistics(old), new)
    assert found == pytest.approx(_literally(old.numpy(), new.numpy()), rel=1e-6)
    assert novelty(_statistics(old), old) < 1  # that they made the statistics shows


@given(st.integers(0, 50), st.floats(0.01, 100), st.floats(-10, 10))
def test_the_unit_and_the_origin_of_features_do_not_matter(seed: int, scale: float, shift: float):
    old, new = _features(seed), _features(seed + 1, n=40) + 0.3
    moved = novelty(_statistics(old * scale + shift), new * scale + shift)
    assert moved == pytest.approx(novelty(_statistics(old), new), rel=1e-4)


def test_more_of_the_same_is_near_one_and_other_inputs_are_not():
    old = _features(0)
    assert novelty(_statistics(old), _features(1)) == pytest.approx(1, abs=0.15)
    assert novelty(_statistics(old), 6 - _features(1) + 1) > 1.6


@pytest.mark.parametrize("count", [60, 150, 1000])
def test_more_of_the_same_is_near_one_however_few_made_the_statistics(count: int):
    """Fewer samples than features, and more."""
    rng = np.random.default_rng(count)
    spread = np.geomspace(1, 0.01, 200)
    old, new = (torch.from_numpy(rng.standard_normal((n, 200)) * spread) for n in (count, 400))
    assert novelty(_statistics(old), new) == pytest.approx(1, abs=0.3)
    assert novelty(_statistics(old), 1.6 * new) > 1.6


def test_features_that_never_vary_and_no_samples():
    assert novelty(_statistics(torch.ones(5, 3)), torch.ones(2, 3)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="expected statistics of samples"):
        novelty(empty_statistics(3), torch.ones(2, 3))
