"""The closed-form stability loss is the literal one, in both readings, for every shape."""

from __future__ import annotations

import itertools

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_pslora.config import StabilityConfig
from edge_pslora.core.stability import stability_target, stability_term

PARTS = [p for p in itertools.product((True, False), repeat=2) if any(p)]
SHAPES = [(1, 9, 2, 1), (9, 1, 2, 1), (7, 5, 3, 2), (33, 17, 40, 4), (5, 5, 1, 0)]


def _case(out: int, size: int, r: int, k: int, dtype: torch.dtype = torch.float64, seed: int = 0):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype)

    return draw(r, size), draw(out, r), draw(out, k), draw(k, size)


@pytest.mark.parametrize("reading", ["elementwise", "product"])
@pytest.mark.parametrize(("direction", "magnitude"), PARTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tile", [1, 11, 1 << 20])
def test_value_and_gradient_equal_the_reference(reading, direction, magnitude, shape, tile):
    A, B, left, right = _case(*shape)
    target = stability_target(left, right, base_rms=0.7)
    config = StabilityConfig(
        temperature=1.3, reading=reading, direction=direction, magnitude=magnitude
    )
    term = stability_term(A, B, 0.5, target, config, tile_elements=tile)
    A.requires_grad_(True)
    B.requires_grad_(True)
    loss = reference.stability_loss(
        A, B, 0.5, left @ right, target.scale, 1.3, reading, direction, magnitude
    )
    if loss.requires_grad:
        loss.backward()
    for found, expected in (
        (term.loss, loss.detach()),
        (term.grad_A, A.grad),
        (term.grad_B, B.grad),
    ):
        expected = torch.zeros_like(found) if expected is None else expected
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reading", ["elementwise", "product"])
def test_float32_is_close_to_float64(reading):
    A, B, left, right = _case(40, 30, 4, 3)
    config = StabilityConfig(reading=reading)
    exact = stability_term(A, B, 0.5, stability_target(left, right, 0.7), config)
    target = stability_target(left.float(), right.float(), 0.7)
    single = stability_term(A.float(), B.float(), 0.5, target, config)
    torch.testing.assert_close(single.loss.double(), exact.loss, rtol=1e-5, atol=0.0)
    for found, expected in ((single.grad_A, exact.grad_A), (single.grad_B, exact.grad_B)):
        error = (found.double() - expected).norm() / expected.norm()
        assert float(error) < 1e-5


@pytest.mark.parametrize("reading", ["elementwise", "product"])
def test_a_zero_update_costs_nothing_and_has_a_finite_gradient(reading):
    A, B, left, right = _case(6, 5, 2, 2)
    term = stability_term(
        A,
        torch.zeros_like(B),
        0.5,
        stability_target(left, right, 0.7),
        StabilityConfig(reading=reading),
    )
    assert float(term.loss) == 0.0
    assert bool(torch.isfinite(term.grad_A).all() and torch.isfinite(term.grad_B).all())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["elementwise", "product"]))
def test_agreeing_costs_less_than_silence_and_opposing_costs_more(seed, reading):
    A, B, _, _ = _case(8, 6, 2, 2, seed=seed)
    config = StabilityConfig(reading=reading)
    D = 0.5 * B @ A
    rms = float(D.pow(2).mean().sqrt())
    losses = []
    for sign in (1.0, -1.0):
        target = stability_target(sign * 0.5 * B, A, base_rms=0.0)
        losses.append(float(stability_term(A, B, 0.5, target, config).loss))
    silent = stability_target(torch.zeros(8, 0).double(), torch.zeros(0, 6).double(), 20 * rms)
    without = float(stability_term(A, B, 0.5, silent, config).loss)
    assert losses[0] < without < losses[1]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_the_loss_has_no_unit(seed, factor):
    """Weights, history and update in other units: the same loss."""
    A, B, left, right = _case(8, 6, 2, 2, seed=seed)
    config = StabilityConfig()
    one = stability_term(A, B, 0.5, stability_target(left, right, 0.7), config).loss
    scaled = stability_target(factor * left, right, factor * 0.7)
    other = stability_term(A, factor * B, 0.5, scaled, config).loss
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_arguments_are_not_changed():
    A, B, left, right = _case(8, 6, 2, 2)
    copies = [t.clone() for t in (A, B, left, right)]
    stability_term(A, B, 0.5, stability_target(left, right, 0.7), StabilityConfig())
    for before, after in zip(copies, (A, B, left, right), strict=True):
        assert torch.equal(before, after)
