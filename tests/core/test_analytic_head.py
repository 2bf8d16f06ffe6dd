"""The analytic head: streaming equals batch, order does not matter, transport undoes linear drift."""

from __future__ import annotations

import pytest
import reference
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_pslora.core.analytic_head import (
    HeadStatistics,
    add_samples,
    empty_statistics,
    fit_transport,
    solve_head,
    transport,
    with_labels,
)


def _samples(n: int, d: int, c: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(n, d, generator=g, dtype=torch.float64)
    return features, F.one_hot(torch.randint(c, (n,), generator=g), c).double()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(1, 5))
def test_any_cut_of_the_stream_gives_the_batch_solution(seed, parts):
    features, targets = _samples(60, 7, 3, seed)
    statistics = empty_statistics(7, ("a", "b", "c"))
    for f, y in zip(features.chunk(parts), targets.chunk(parts), strict=True):
        statistics = add_samples(statistics, f, y)
    weight, bias = solve_head(statistics, 1e-2)
    expected_weight, expected_bias = reference.ridge_head(features, targets, 1e-2)
    torch.testing.assert_close(weight.double(), expected_weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bias.double(), expected_bias, rtol=1e-5, atol=1e-6)


def test_order_does_not_matter_and_nothing_is_changed():
    features, targets = _samples(40, 5, 2)
    empty = empty_statistics(5, ("a", "b"))
    one = add_samples(empty, features, targets)
    other = add_samples(
        add_samples(empty, features[20:], targets[20:]), features[:20], targets[:20]
    )
    torch.testing.assert_close(one.gram, other.gram)
    torch.testing.assert_close(one.moment, other.moment)
    assert not bool(empty.gram.any())
    assert empty.samples == 0


def test_a_new_class_is_a_new_column_and_leaves_old_scores_alone():
    features, targets = _samples(40, 5, 2)
    statistics = add_samples(empty_statistics(5, ("a", "b")), features, targets)
    more = with_labels(statistics, ("b", "c"))
    assert more.labels == ("a", "b", "c")
    before, after = solve_head(statistics, 1e-2), solve_head(more, 1e-2)
    torch.testing.assert_close(before[0], after[0][:2])
    assert not bool(after[0][2].any())


def test_an_empty_head_answers_zero():
    weight, bias = solve_head(empty_statistics(4, ("a",)), 1e-2)
    assert not bool(weight.any())
    assert not bool(bias.any())


@pytest.mark.parametrize("n", [50, 7, 6, 3, 1])
def test_the_transport_map_equals_the_reference(n):
    old, _ = _samples(n, 6, 2)
    new = old + 0.1 * torch.randn(n, 6, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(
        fit_transport(old, new, 1e-2), reference.transport_map(old, new, 1e-2)
    )


def test_statistics_that_rounding_made_indefinite_are_solved_all_the_same():
    gram = torch.diag(torch.tensor([1.0, 1.0, -1e-6, 5.0], dtype=torch.float64))
    moment = torch.tensor([[1.0], [0.0], [0.0], [2.0]], dtype=torch.float64)
    statistics = HeadStatistics(gram, moment, torch.ones(1).double(), ("a",), 5.0)
    weight, bias = solve_head(statistics, 1e-9)
    torch.testing.assert_close(weight, torch.tensor([[1.0, 0.0, 0.0]]))
    torch.testing.assert_close(bias, torch.tensor([0.4]))


def test_without_drift_transport_is_the_identity():
    old, _ = _samples(50, 6, 2)
    torch.testing.assert_close(fit_transport(old, old, 1e-2), torch.eye(7, dtype=torch.float64))


def test_transport_undoes_a_linear_drift():
    """Statistics taken before an invertible linear drift give the head of statistics taken after."""
    features, targets = _samples(400, 6, 3)
    mixing = torch.eye(6).double() + 0.2 * torch.randn(
        6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    drifted = features @ mixing + 0.5
    empty = empty_statistics(6, ("a", "b", "c"))
    moved = transport(add_samples(empty, features, targets), fit_transport(features, drifted, 1e-9))
    fresh = add_samples(empty, drifted, targets)
    torch.testing.assert_close(moved.gram, fresh.gram, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(moved.moment, fresh.moment, rtol=1e-5, atol=1e-4)
