"""The ridge by leave-one-out: closed form equals leaving one sample out and solving; old classes count."""

from __future__ import annotations

import pytest
import reference
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_pslora.core import analytic_head
from edge_pslora.core.analytic_head import (
    HeadStatistics,
    add_samples,
    empty_statistics,
    mean_square,
    solve_head,
)
from edge_pslora.core.ridge_path import (
    RIDGES,
    LeaveOneOut,
    leave_one_out,
    left_out_scores,
    ridge_path,
    session_path,
)

LABELS = ("a", "b", "c")


def _samples(n: int, d: int, seed: int, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features with a mean and very different scales, multi-hot targets."""
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(n, d, generator=g, dtype=torch.float64) * torch.logspace(0, -1, d)
    return features + shift, (torch.rand(n, 3, generator=g) < 0.4).double()


def _total(old: int, new: int, d: int, seed: int, weighted: bool):
    """(statistics of old and new samples, the new ones, their weights)."""
    statistics = add_samples(empty_statistics(d, LABELS), *_samples(old, d, seed, 0.3))
    features, targets = _samples(new, d, seed + 1)
    weights = torch.rand(new, generator=torch.Generator().manual_seed(seed)).double() + 0.2
    weights = weights if weighted else torch.ones(new).double()
    return add_samples(statistics, features, targets, weights), features, targets, weights


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 999),
    st.sampled_from([0, 4, 30]),
    st.sampled_from([5, 17]),
    st.sampled_from(RIDGES),
    st.booleans(),
)
def test_the_closed_form_equals_leaving_each_sample_out(seed, old, new, ridge, weighted):
    statistics, features, targets, weights = _total(old, new, 6, seed, weighted)
    path = ridge_path(statistics)
    found = left_out_scores(path, features, targets, ridge, weights)
    mu = mean_square(statistics) * ridge
    expected = reference.left_out_scores(
        statistics.gram, statistics.moment, features, targets, weights, mu
    )
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    errors = leave_one_out(path, features, targets, weights)
    wanted = float((weights[:, None] * (targets - expected).square()).sum())
    assert errors.session[RIDGES.index(ridge)] == pytest.approx(wanted, rel=1e-7)


def test_the_path_gives_the_head_that_is_solved():
    statistics, *_ = _total(10, 20, 6, 3, False)
    path = ridge_path(statistics)
    for ridge in RIDGES:
        weight, bias = solve_head(statistics, ridge)
        slope = path.vectors @ (path.inverse(ridge)[:, None] * path.rotated)
        torch.testing.assert_close(slope.T.float(), weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            (path.level - path.mean @ slope).float(), bias, rtol=1e-4, atol=1e-5
        )


def test_the_error_of_old_samples_is_that_of_their_own_residuals_and_mean_leverage():
    d, old_count = 6, 40
    old_features, old_targets = _samples(old_count, d, 5, 0.3)
    statistics = add_samples(empty_statistics(d, LABELS), old_features, old_targets)
    features, targets = _samples(12, d, 6)
    total = add_samples(statistics, features, targets)
    found = leave_one_out(ridge_path(total), features, targets)
    for ridge, error in zip(RIDGES, found.old, strict=True):
        mu = mean_square(total) * ridge
        system = total.gram + mu * torch.diag(torch.tensor([1.0] * d + [0.0])).double()
        f = torch.cat([old_features, torch.ones(old_count, 1).double()], dim=1)
        residual = old_targets - f @ torch.linalg.solve(system, total.moment)
        leverage = (f * torch.linalg.solve(system, f.T).T).sum(1).mean()
        expected = float(residual.square().sum() / (1 - leverage) ** 2)
        assert error == pytest.approx(expected, rel=1e-5)


def test_without_earlier_samples_only_the_session_counts():
    statistics, features, targets, weights = _total(0, 20, 6, 3, True)
    found = leave_one_out(ridge_path(statistics), features, targets, weights)
    assert found.old == (0.0,) * len(RIDGES)
    assert found.best() == RIDGES[found.session.index(min(found.session))]


def test_with_slack_the_smallest_ridge_that_is_nearly_as_good_is_taken():
    found = LeaveOneOut((0.01, 0.1, 1.0, 10.0), (9.0, 4.1, 4.0, 4.0), (2.0, 1.0, 1.0, 3.0))
    assert [found.best(slack) for slack in (0.0, 0.01, 0.03, 1.3)] == [1.0, 1.0, 0.1, 0.01]


def _noisy(n: int, d: int, seed: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(n, d, generator=g).double()
    values = features @ torch.ones(d, 1).double()
    return features, values + noise * torch.randn(n, 1, generator=g).double()


def test_noise_asks_for_more_ridge_and_few_new_samples_do_not_overrule_many_old_ones():
    def best(statistics: HeadStatistics, x: torch.Tensor, y: torch.Tensor) -> float:
        return leave_one_out(ridge_path(add_samples(statistics, x, y)), x, y).best()

    empty = empty_statistics(30, ("value",))
    clean, noisy = _noisy(60, 30, 1, 0.01), _noisy(60, 30, 2, 20.0)
    alone = best(empty, *clean), best(empty, *noisy)
    assert alone[0] < 1e-2 < alone[1]
    # the session's few samples would like the largest ridge; the old ones, whose error is counted, not
    old = add_samples(empty, *_noisy(200, 30, 3, 0.01))
    few = _noisy(6, 30, 4, 1.0)
    found = leave_one_out(ridge_path(add_samples(old, *few)), *few)
    assert found.best() <= 1e-2


def test_blocks_do_not_change_the_result(monkeypatch):
    statistics, features, targets, weights = _total(10, 23, 6, 3, True)
    whole = leave_one_out(ridge_path(statistics), features, targets, weights)
    whole_map = analytic_head.fit_transport(features, features * 1.1, 1e-2)
    monkeypatch.setattr(analytic_head, "BLOCK", 5)
    sizes: list[int] = []
    augment = analytic_head.augment
    monkeypatch.setattr(analytic_head, "augment", lambda f: sizes.append(len(f)) or augment(f))
    parts = leave_one_out(ridge_path(statistics), features, targets, weights)
    assert parts.session == pytest.approx(whole.session)
    again, *_ = _total(10, 23, 6, 3, True)
    torch.testing.assert_close(again.gram, statistics.gram)
    torch.testing.assert_close(again.moment, statistics.moment)
    torch.testing.assert_close(again.squares, statistics.squares)
    torch.testing.assert_close(
        analytic_head.fit_transport(features, features * 1.1, 1e-2), whole_map
    )
    assert max(sizes) == 5  # no float64 copy of more samples than that


def test_weights_are_repetitions():
    features, targets = _samples(9, 4, 0)
    empty = empty_statistics(4, LABELS)
    times = torch.tensor([1, 2, 3] * 3)
    weighted = add_samples(empty, features, targets, times.double())
    repeated = add_samples(
        empty, features.repeat_interleave(times, 0), targets.repeat_interleave(times, 0)
    )
    torch.testing.assert_close(weighted.gram, repeated.gram)
    torch.testing.assert_close(weighted.moment, repeated.moment)
    torch.testing.assert_close(weighted.squares, repeated.squares)
    assert weighted.samples == repeated.samples == 18


def test_float32_features_of_one_label_have_a_ridge():
    features = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    columns = F.one_hot(torch.zeros(5, dtype=torch.int64), 1)
    statistics = add_samples(empty_statistics(4, ("a",)), features, columns)
    assert leave_one_out(ridge_path(statistics), features, columns).best() in RIDGES


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.sampled_from([1, 3, 9, 25]), st.booleans())
def test_a_first_session_of_few_samples_has_the_same_path_from_their_own_products(
    seed, new, weighted
):
    """Fewer samples than features, one of them twice: some directions are empty."""
    statistics, features, targets, weights = _total(0, new, 20, seed, weighted)
    statistics = add_samples(statistics, features[:1], targets[:1], weights[:1])
    features, targets = torch.cat([features, features[:1]]), torch.cat([targets, targets[:1]])
    weights = torch.cat([weights, weights[:1]])
    small = session_path(statistics, features, weights)
    if new < 19:
        assert small.vectors.shape[1] <= new + 1
    whole = ridge_path(statistics)
    for ridge in (RIDGES[0], RIDGES[5], RIDGES[-1]):
        ours, theirs = (
            left_out_scores(p, features, targets, ridge, weights) for p in (small, whole)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    found, expected = (leave_one_out(p, features, targets, weights) for p in (small, whole))
    assert found.session == pytest.approx(expected.session, rel=1e-6)
    assert found.old == expected.old


def test_a_later_session_looks_at_its_past_too():
    statistics, features, targets, weights = _total(30, 5, 20, 0, True)
    path, whole = session_path(statistics, features, weights), ridge_path(statistics)
    assert torch.equal(path.vectors, whole.vectors)
    found = leave_one_out(path, features, targets, weights)
    assert found == leave_one_out(whole, features, targets, weights)
