"""The history: constant size, honest certificate, best approximation where nothing was lost."""

from __future__ import annotations

import dataclasses

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_pslora.core.certificate import certify_signs
from edge_pslora.core.fixed_point import component_bytes, packed_bytes
from edge_pslora.core.history import (
    LayerHistory,
    allocate_bytes,
    empty_layer,
    fold,
    overhead_bytes,
    pool_bytes,
)
from edge_pslora.errors import BudgetError

SHAPES = {"a": (12, 9), "b": (1, 7), "c": (8, 1), "d": (20, 20)}
LEAST = sum(component_bytes(shape) for shape in SHAPES.values())
AMPLE = 100_000


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


def _exact(layer: LayerHistory) -> torch.Tensor:
    left, right = layer.factors()
    return left.double() @ right.double()


def _used(history: dict[str, LayerHistory]) -> int:
    return sum(layer.packed.numel() for layer in history.values())


# over 1,000 random histories, of one to six sessions: the certificate is never violated
@pytest.mark.slow
@settings(max_examples=170, deadline=None)
@given(
    st.integers(0, 1_000_000),
    st.integers(1, 3),
    st.integers(LEAST, 1500),
    st.sampled_from([1e-6, 1.0, 1e4]),
    st.sampled_from([1.0, -1.0, 0.1]),
)
def test_the_certificate_bounds_every_entry_the_norm_and_the_signs(seed, rank, size, scale, growth):
    history = _empty()
    total = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    for session in range(6):  # each is looked at: it need not be folded again for a longer one
        updates = _updates(seed + session, rank, scale * growth**session)
        history = fold(history, updates, size)
        for name, (P, Q) in updates.items():
            total[name] += P.double() @ Q.double()
        assert _used(history) <= size
        _assert_certified(history, total)


def _assert_certified(history: dict[str, LayerHistory], total: dict[str, torch.Tensor]) -> None:
    for name, layer in history.items():
        stored, S = _exact(layer), total[name]
        assert float((stored - S).abs().max()) <= layer.eps
        assert float((stored - S).norm()) <= layer.frobenius
        sure = stored.abs() > layer.eps
        assert torch.equal(stored[sure].sign(), S[sure].sign())
        certificate = certify_signs(layer)
        assert certificate.entries == pytest.approx(float(sure.double().mean()), abs=1e-9)
        assert certificate.agreement <= reference.sign_agreement(stored, S) + 1e-9


def test_a_bound_that_forgets_the_rounding_is_caught():
    """The planted fault: the same check fails when eps leaves out what rounding to a byte costs."""
    updates = _updates(1, 3)
    history = fold(_empty(), updates, 400)
    layer = history["d"]
    assert layer.planes[1] < layer.rank
    P, Q = updates["d"]
    best = reference.best_rank(P.double() @ Q.double(), layer.rank)
    tail = float((best - P.double() @ Q.double()).norm())
    assert layer.frobenius > tail
    assert float((_exact(layer) - P.double() @ Q.double()).norm()) > tail


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 3))
def test_folding_is_the_svd_of_the_sum_up_to_eps(seed, sessions, rank):
    history = _empty()
    total = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    for session in range(sessions):
        updates = _updates(seed + session, rank)
        history = fold(history, updates, 900)
        for name, (P, Q) in updates.items():
            total[name] += P.double() @ Q.double()
    for name, layer in history.items():
        best = reference.best_rank(total[name], layer.rank)
        tail = float((best - total[name]).norm())
        # no rank-k matrix comes closer than the SVD, and ours is within its certificate
        error = float((_exact(layer) - total[name]).norm())
        assert tail <= error + 1e-9 * float(total[name].norm())
        assert float((_exact(layer) - best).norm()) <= layer.frobenius + tail


def test_one_fold_is_the_best_approximation():
    updates = _updates(3, 5)
    history = fold(_empty(), updates, 900)
    assert history["d"].rank > 0
    for name, (P, Q) in updates.items():
        best = reference.best_rank(P.double() @ Q.double(), history[name].rank)
        # to the rounding of its coarsest component: a byte of two factors
        error = float((_exact(history[name]) - best).norm() / best.norm())
        assert error < 0.02


def test_with_enough_room_nothing_is_lost():
    history = _empty()
    total = torch.zeros(20, 20, dtype=torch.float64)
    for seed in range(4):
        updates = _updates(seed, 2)
        history = fold(history, updates, AMPLE)
        total += updates["d"][0].double() @ updates["d"][1].double()
    assert history["d"].planes == (8, 8, 8)
    torch.testing.assert_close(_exact(history["d"]), total, rtol=1e-5, atol=1e-5)
    assert history["d"].eps < 1e-4


def test_a_layer_without_update_keeps_its_content():
    history = fold(_empty(), _updates(0, 2), AMPLE)
    again = fold(history, {}, AMPLE)
    for name in SHAPES:
        torch.testing.assert_close(again[name].dense(), history[name].dense(), rtol=1e-5, atol=1e-6)


def test_an_update_of_zero_takes_no_room_and_proves_everything():
    zero = {n: (torch.zeros(o, 2), torch.randn(2, i)) for n, (o, i) in SHAPES.items()}
    history = fold(_empty(), zero, AMPLE)
    for layer in history.values():
        assert layer.rank == 0
        assert layer.eps == layer.frobenius == 0.0
        assert certify_signs(layer).agreement == 1.0


def test_folding_is_deterministic_and_pure():
    history = fold(_empty(), _updates(0, 2), 600)
    copies = {n: h.packed.clone() for n, h in history.items()}
    first, second = (fold(history, _updates(1, 2), 600) for _ in range(2))
    for name in SHAPES:
        assert torch.equal(first[name].packed, second[name].packed)
        assert (first[name].eps, first[name].planes) == (second[name].eps, second[name].planes)
        assert torch.equal(history[name].packed, copies[name])


def test_bytes_go_where_they_remove_the_most_error():
    spectra = {"weak": torch.tensor([1.0, 0.1]), "strong": torch.tensor([9.0, 8.0, 7.0])}
    shapes = {"weak": (5, 5), "strong": (5, 5)}
    first = component_bytes((5, 5))
    assert allocate_bytes(spectra, shapes, 4 * first) == {"weak": (1, 0, 0), "strong": (3, 0, 0)}
    assert allocate_bytes(spectra, shapes, 3 * first) == {"weak": (1, 0, 0), "strong": (2, 0, 0)}
    # the second byte of a component of size 100 is worth more than the first of one of size 0.1
    uneven = {"only": torch.tensor([100.0, 0.1])}
    assert allocate_bytes(uneven, {"only": (5, 5)}, 2 * first) == {"only": (1, 1, 0)}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1e3), max_size=12), st.integers(0, 2000))
def test_an_allocation_fits_and_its_bytes_never_rise_along_a_layer(spectrum, more):
    spectra = {"x": torch.tensor(sorted(spectrum, reverse=True), dtype=torch.float64)}
    shapes = {"x": (12, 12)}
    planes = allocate_bytes(spectra, shapes, component_bytes((12, 12)) + more)["x"]
    assert packed_bytes((12, 12), planes) <= component_bytes((12, 12)) + more
    assert len(spectrum) >= planes[0] >= planes[1] >= planes[2] >= 0


def test_a_budget_below_rank_one_is_refused_with_the_least_that_would_do():
    least = LEAST + overhead_bytes(SHAPES)
    with pytest.raises(BudgetError, match=str(least)) as caught:
        pool_bytes(SHAPES, least - 1)
    assert caught.value.exit_code == 6
    assert pool_bytes(SHAPES, least) == LEAST
    history = fold(_empty(), _updates(0, 2), pool_bytes(SHAPES, least))
    assert all(layer.planes == (1, 0, 0) for layer in history.values())


def test_the_size_stays_and_the_error_is_stated_over_a_thousand_folds():
    """Random walks are the worst case: nothing repeats, so the history cannot hold them."""
    shapes = {"x": (16, 12)}
    history = {"x": empty_layer(16, 12)}
    total = torch.zeros(16, 12, dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    for _ in range(1000):
        P, Q = torch.randn(16, 2, generator=g), torch.randn(2, 12, generator=g)
        history = fold(history, {"x": (P, Q)}, 4 * component_bytes((16, 12)))
        total += P.double() @ Q.double()
    layer = history["x"]
    assert layer.packed.numel() <= 4 * component_bytes(shapes["x"])
    assert float((_exact(layer) - total).abs().max()) <= layer.eps
    assert torch.isfinite(torch.tensor([layer.eps, layer.frobenius])).all()


def test_signs_of_an_exact_and_of_a_worthless_history():
    history = fold(_empty(), _updates(0, 2), AMPLE)["d"]
    exact = certify_signs(history)
    assert exact.entries > 0.999
    assert exact.agreement > 0.999
    lost = dataclasses.replace(history, eps=1e9, frobenius=1e9)
    assert certify_signs(lost).entries == certify_signs(lost).agreement == 0.0
    nothing = dataclasses.replace(empty_layer(3, 4), eps=1.0, frobenius=1.0)
    assert certify_signs(nothing).agreement == 0.0
