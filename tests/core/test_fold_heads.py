"""Heads without one fold each: both ways to them equal the head solved on the samples that are left."""

from __future__ import annotations

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_pslora.core.analytic_head import add_samples, empty_statistics, solve_head
from edge_pslora.core.fold_heads import Products, fold_heads, is_small

LABELS = ("a", "b", "c")


def _samples(n: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features with a large mean and very different scales, multi-hot targets; n of 0 too."""
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(n, d, generator=g, dtype=torch.float64) * torch.logspace(0, -1, d)
    return features + 3.0, (torch.rand(n, 3, generator=g) < 0.4).double()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 999),
    st.sampled_from([0, 2, 30]),
    st.sampled_from([1, 3, 11, 40]),
    st.sampled_from([1e-4, 1e-2, 10.0]),
)
def test_each_fold_has_the_head_of_all_other_samples(seed, old, new, ridge):
    d = 12
    past, now = _samples(old, d, seed), _samples(new, d, seed + 1)
    before = add_samples(empty_statistics(d, LABELS), *past)
    total = add_samples(before, *now)
    fold = torch.arange(new) % min(4, new)
    found = fold_heads(before, total, *now, fold, ridge, lambda columns: None)
    assert len(found) == int(fold.max()) + 1
    for k, (weight, bias) in enumerate(found):
        left = fold != k
        features, targets = (torch.cat([a, b[left]]) for a, b in zip(past, now, strict=True))
        if len(features) == 0:
            assert not weight.any()
            assert not bias.any()
            continue
        expected = reference.ridge_head(features, targets, ridge)
        torch.testing.assert_close(weight.double(), expected[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(bias.double(), expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("old", [0, 20])
@pytest.mark.parametrize("new", [9, 30])
def test_weights_are_those_of_the_samples_that_a_head_sees(old, new):
    d = 12
    before = add_samples(empty_statistics(d, LABELS), *_samples(old, d, 1))
    features, targets = _samples(new, d, 2)
    total = add_samples(before, features, targets)
    asked: list[int] = []

    def weigh(columns: torch.Tensor) -> torch.Tensor:
        asked.append(len(columns))
        return 0.5 + columns.sum(1) / columns.sum()

    fold = torch.arange(new) % 3
    assert is_small(before, new) == (old == 0 and new == 9)
    found = fold_heads(before, total, features, targets, fold, 1e-2, weigh)
    assert asked == [int((fold != k).sum()) for k in range(3)]
    for k, (weight, bias) in enumerate(found):
        seen = fold != k
        statistics = add_samples(before, features[seen], targets[seen], weigh(targets[seen]))
        expected = solve_head(statistics, 1e-2)
        torch.testing.assert_close(weight, expected[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(bias, expected[1], rtol=1e-4, atol=1e-5)


def test_a_feature_that_is_the_same_everywhere_takes_part_in_the_bias_only():
    features = torch.full((6, 9), 2.0)
    targets = torch.tensor([[1.0], [1.0], [1.0], [0.0], [0.0], [1.0]])
    weight, bias = Products(features).solve(torch.arange(6), targets, 1e-3)
    torch.testing.assert_close(weight, torch.zeros(1, 9), atol=1e-6, rtol=0)
    torch.testing.assert_close(bias, torch.tensor([4 / 6]), atol=1e-5, rtol=0)
