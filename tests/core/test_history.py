"""The history: constant size, honest certificate, best approximation where nothing was lost."""

from __future__ import annotations

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_pslora.core.history import (
    BYTES_PER_NUMBER,
    LayerHistory,
    allocate_ranks,
    empty_layer,
    fold,
    numbers_per_rank,
    overhead_bytes,
    pool_numbers,
    proven_signs,
)
from edge_pslora.errors import BudgetError

SHAPES = {"a": (12, 9), "b": (1, 7), "c": (8, 1), "d": (20, 20)}


def _updates(
    seed: int, rank: int, scale: float = 1.0
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return {
        name: (scale * torch.randn(out, rank, generator=g), torch.randn(rank, size, generator=g))
        for name, (out, size) in SHAPES.items()
    }


def _empty() -> dict[str, LayerHistory]:
    return {name: empty_layer(*shape) for name, shape in SHAPES.items()}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 3), st.integers(52, 400))
def test_the_certificate_bounds_every_entry_and_proves_signs(seed, sessions, rank, numbers):
    history = _empty()
    total = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    least = sum(numbers_per_rank(shape) for shape in SHAPES.values())
    for session in range(sessions):
        updates = _updates(seed + session, rank)
        history = fold(history, updates, max(numbers, least))
        for name, (P, Q) in updates.items():
            total[name] += P.double() @ Q.double()
    for name, layer in history.items():
        stored = layer.left.double() @ layer.right.double()
        error = stored - total[name]
        slack = 1 + 1e-9
        assert float(error.norm()) <= layer.eps * slack + 1e-12
        sure = stored.abs() > layer.eps * slack + 1e-12
        assert torch.equal(stored[sure].sign(), total[name][sure].sign())
    used = sum(numbers_per_rank(SHAPES[n]) * layer.rank for n, layer in history.items())
    assert used <= max(numbers, least)


def test_one_fold_is_the_best_approximation():
    updates = _updates(3, 5)
    history = fold(_empty(), updates, 150)
    for name, (P, Q) in updates.items():
        best = reference.best_rank(P.double() @ Q.double(), history[name].rank)
        stored = history[name].left.double() @ history[name].right.double()
        torch.testing.assert_close(stored, best, rtol=1e-5, atol=1e-5)


def test_with_enough_room_nothing_is_lost():
    history = _empty()
    total = torch.zeros(20, 20, dtype=torch.float64)
    for seed in range(4):
        updates = _updates(seed, 2)
        history = fold(history, updates, 10_000)
        total += updates["d"][0].double() @ updates["d"][1].double()
    assert history["d"].rank == 8
    torch.testing.assert_close(history["d"].dense().double(), total, rtol=1e-5, atol=1e-5)
    assert history["d"].eps < 1e-4


def test_a_layer_without_update_keeps_its_content():
    history = fold(_empty(), _updates(0, 2), 10_000)
    again = fold(history, {}, 10_000)
    for name in SHAPES:
        torch.testing.assert_close(again[name].dense(), history[name].dense(), rtol=1e-5, atol=1e-6)


def test_folding_is_deterministic_and_pure():
    history = fold(_empty(), _updates(0, 2), 200)
    copies = {n: (h.left.clone(), h.right.clone()) for n, h in history.items()}
    first, second = (fold(history, _updates(1, 2), 200) for _ in range(2))
    for name in SHAPES:
        assert torch.equal(first[name].left, second[name].left)
        assert torch.equal(history[name].left, copies[name][0])
        assert torch.equal(history[name].right, copies[name][1])


def test_ranks_go_where_the_energy_is():
    spectra = {"weak": torch.tensor([1.0, 0.1]), "strong": torch.tensor([9.0, 8.0, 7.0])}
    shapes = {"weak": (5, 5), "strong": (5, 5)}
    assert allocate_ranks(spectra, shapes, 40) == {"weak": 1, "strong": 3}
    assert allocate_ranks(spectra, shapes, 30) == {"weak": 1, "strong": 2}


def test_a_budget_below_rank_one_is_refused_with_the_least_that_would_do():
    numbers = sum(numbers_per_rank(shape) for shape in SHAPES.values())
    least = numbers * BYTES_PER_NUMBER + overhead_bytes(SHAPES)
    with pytest.raises(BudgetError, match=str(least)) as caught:
        pool_numbers(SHAPES, least - 1)
    assert caught.value.exit_code == 6
    assert pool_numbers(SHAPES, least) == numbers


def test_proven_signs_of_an_exact_and_of_a_worthless_history():
    history = fold(_empty(), _updates(0, 2), 10_000)["d"]
    assert proven_signs(history).entries == 1.0
    lost = LayerHistory(history.left, history.right, eps=1e9)
    assert proven_signs(lost).entries == 0.0
    assert proven_signs(lost).weight == 0.0
