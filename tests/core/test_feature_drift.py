"""How far features have moved: against sums written out, and what it must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_pslora.core.analytic_head import HeadStatistics, add_samples, empty_statistics
from edge_pslora.core.feature_drift import feature_drift, feature_variance


def _features(seed: int, n: int = 40, d: int = 5) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((n, d)).astype(np.float32) + 2)


def _statistics(features: torch.Tensor) -> HeadStatistics:
    nothing = empty_statistics(features.shape[1], ("a",))
    return add_samples(nothing, features, torch.zeros(len(features), 1))


@given(st.integers(0, 30))
def test_it_is_the_mean_squared_distance_in_units_of_the_variance(seed: int):
    before, after = _features(seed), _features(seed + 1)
    variance = feature_variance(_statistics(before))
    assert variance == pytest.approx(float(before.double().var(0, correction=0).sum()), rel=1e-6)
    literal = np.mean([float((a - b) @ (a - b)) for a, b in zip(after, before, strict=True)])
    assert float(feature_drift(after, before, variance)) == pytest.approx(
        literal / variance, rel=1e-5
    )


@given(st.integers(0, 10), st.floats(0.01, 100.0))
def test_the_unit_of_the_features_cancels(seed: int, unit: float):
    before, after = _features(seed), _features(seed + 1)
    found = [
        float(feature_drift(after * u, before * u, feature_variance(_statistics(before * u))))
        for u in (1.0, unit)
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_nothing_moved_has_no_drift_and_no_gradient():
    before = _features(0)
    features = before.clone().requires_grad_()
    drift = feature_drift(features, before, 1.0)
    drift.backward()
    assert float(drift.detach()) == 0.0
    assert features.grad is not None
    assert not features.grad.any()


def test_features_that_never_varied_have_a_variance_to_divide_by():
    assert feature_variance(_statistics(torch.ones(9, 3))) > 0
    assert feature_variance(_statistics(torch.zeros(9, 3))) > 0


def test_without_samples_there_is_no_variance():
    with pytest.raises(ValueError, match="found none"):
        feature_variance(empty_statistics(3))
