"""RanPAC, streaming LDA, first-session adaptation, projected and reduced heads."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from edge_pslora.compare.learners.analytic_variants import ProjectedLearner, ReducedLearner
from edge_pslora.compare.learners.first_session import FirstSessionLearner
from edge_pslora.compare.learners.frozen import FrozenLearner
from edge_pslora.compare.learners.lda import (
    SHRINKAGE,
    LdaLearner,
    add_lda,
    empty_lda,
    solve_lda,
    with_classes,
)
from edge_pslora.compare.learners.projected import (
    RIDGES,
    RanPacLearner,
    chosen_ridge,
    project,
    random_projection,
    solve_ridge,
)
from edge_pslora.compare.product import ProductLearner
from tests.compare.rules_kit import average, learned, setup, task


def _samples(count: int, seed: int, size: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 3, (count,), generator=generator)
    return torch.randn(count, size, generator=generator) + classes[:, None], classes


def test_lda_of_a_session_is_that_of_its_samples_one_by_one():
    """Eq. 1 to 4 of the paper, a sample at a time."""
    mu, counts, sigma, t = np.zeros((3, 5)), np.zeros(3), np.ones((5, 5)), 0
    statistics = empty_lda(5)
    for seed, known in ((0, 3), (1, 3)):
        features, classes = _samples(25, seed)
        for z, y in zip(features.double().numpy(), classes.tolist(), strict=True):
            apart = z - mu[y]
            sigma = (t * sigma + np.outer(apart, apart) * t / (t + 1)) / (t + 1)
            mu[y] += apart / (counts[y] + 1)
            counts[y] += 1
            t += 1
        statistics = add_lda(with_classes(statistics, known), features, classes)
    np.testing.assert_allclose(statistics.means.numpy(), mu, atol=1e-12)
    np.testing.assert_allclose(statistics.scatter.numpy() / t, sigma, atol=1e-12)
    assert statistics.samples == t
    weight, bias = solve_lda(statistics)
    spread = np.trace(sigma) / 5
    inverse = np.linalg.inv((1 - SHRINKAGE) * sigma + SHRINKAGE * spread * np.eye(5))
    np.testing.assert_allclose(weight.numpy(), mu @ inverse, rtol=1e-4)
    literal = [-0.5 * m @ inverse @ m for m in mu]
    np.testing.assert_allclose(bias.numpy(), literal, rtol=1e-4)


def test_lda_learns_a_class_that_comes_later():
    learner = learned(LdaLearner(setup()))
    assert learner.head.labels == ("a", "b", "c", "d", "e")
    assert average(learner) > 0.95
    assert learner.kept_bytes == 4 * (5 * 32 + 5 + 32 * 32)
    assert learner.trained == 0


@pytest.mark.parametrize("units", [6, 40])
def test_the_ridge_is_the_one_of_the_least_error_on_every_fifth_sample(units):
    """Literally: a system solved for each ridge; with more samples than units, and with fewer."""
    generator = torch.Generator().manual_seed(3)
    h = torch.randn(30, units, generator=generator, dtype=torch.float64).relu()
    Y = torch.nn.functional.one_hot(torch.randint(0, 3, (30,), generator=generator)).double()
    held = [i for i in range(30) if i % 5 == 4]
    seen = [i for i in range(30) if i % 5 != 4]
    errors = []
    for ridge in RIDGES:
        W = solve_ridge(h[seen].T @ h[seen], h[seen].T @ Y[seen], ridge).double()
        errors.append(float((h[held] @ W.T - Y[held]).square().mean()))
    assert chosen_ridge(h, Y) == RIDGES[int(np.argmin(errors))]


def test_the_projection_is_normal_and_rectified():
    W = random_projection(4, 3000, torch.Generator().manual_seed(0))
    assert W.shape == (4, 3000)
    assert abs(float(W.mean())) < 0.03
    assert abs(float(W.std()) - 1) < 0.03
    f = torch.randn(2, 4)
    h = project(f, W)
    assert torch.equal(h, torch.clamp(f @ W, min=0))


def test_ranpac_is_ridge_regression_on_all_sessions_at_once():
    learner = learned(RanPacLearner(setup(), units=30))
    both = [task(k) for k in range(3)]
    h = torch.cat([learner._hidden(data) for data in both]).double()
    position = {label: k for k, label in enumerate(learner.head.labels)}
    wanted = torch.tensor([position[name] for data in both for name in data.targets])
    Y = torch.nn.functional.one_hot(wanted).double()
    torch.testing.assert_close(learner.gram, h.T @ h)
    torch.testing.assert_close(learner.moment, h.T @ Y)
    ridge = chosen_ridge(h[80:], Y[80:])
    expected = torch.linalg.solve(h.T @ h + ridge * torch.eye(30, dtype=torch.float64), h.T @ Y).T
    torch.testing.assert_close(learner.head.weight, expected.float(), rtol=1e-3, atol=1e-4)
    assert learner.kept_bytes == 4 * (30 * 30 + 30 * 5)
    assert average(learner) > 0.9


@pytest.mark.parametrize("kind", ["ranpac", "first"])
def test_the_network_learns_from_the_first_session_only(kind):
    given = setup()
    learner = (
        FirstSessionLearner(given)
        if kind == "first"
        else RanPacLearner(given, adapt=True, units=20)
    )
    states = [[p.clone() for p in given.model.backbone.parameters()]]
    trained = []
    for number in range(3):
        learner.learn(task(number))
        trained.append(learner.trained)
        states.append([p.clone() for p in given.model.backbone.parameters()])
    changed = [
        any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))
        for one, other in pairwise(states)
    ]
    assert changed == [True, False, False]
    assert trained[0] > 0
    assert trained[1:] == [0, 0]
    assert average(learner) > 0.9


def test_the_frozen_ones_change_no_weight():
    given = setup()
    before = [p.clone() for p in given.model.backbone.parameters()]
    learned(RanPacLearner(given, units=20))
    assert all(
        torch.equal(a, b) for a, b in zip(before, given.model.backbone.parameters(), strict=True)
    )


def test_the_projected_head_is_refitted_in_its_own_features():
    learner = learned(ProjectedLearner(setup(), units=24))
    assert learner.head.statistics.gram.shape == (25, 25)
    assert learner.head.statistics.samples == 120
    assert learner.kept_bytes > learner.inner.kept_bytes
    assert average(learner) > 0.9


def test_a_reduced_head_keeps_what_its_budget_holds():
    whole, reduced = (
        learned(learner) for learner in (ProductLearner(setup()), ReducedLearner(setup(), 2000))
    )
    assert reduced.rank == 6  # of 32 features: (2000 - 1024 - 132) // 132
    G = reduced.inner.memory.head.statistics.gram
    scatter = G[:-1, :-1] - torch.outer(G[-1, :-1], G[-1, :-1]) / G[-1, -1]
    values = torch.linalg.eigvalsh(scatter)
    torch.testing.assert_close(values[:26], values[0].expand(26))  # an even rest
    assert float(values[26]) > 2 * float(values[0])
    assert reduced.kept_bytes < whole.kept_bytes
    assert average(reduced) > average(whole) - 0.15
    everything = ReducedLearner(setup(), 10_000_000)
    assert everything.rank is None
    assert average(learned(everything)) == average(whole)
    assert average(learned(FrozenLearner(setup()))) > 0.8
