"""Eq. 4 on a small dense matrix equals the literal reference, loss and gradient."""

from __future__ import annotations

import itertools

import pytest
import reference
import torch

from edge_pslora.config import StabilityConfig
from edge_pslora.core.dense_stability import dense_stability, row_scale


def _matrices() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    D, S = (torch.randn(3, 7, generator=g, dtype=torch.float64) for _ in range(2))
    return 0.3 * D, S


@pytest.mark.parametrize(
    ("reading", "direction", "magnitude", "past"),
    list(itertools.product(("elementwise", "product"), *[(True, False)] * 3)),
)
def test_loss_and_gradient_equal_the_reference(reading, direction, magnitude, past):
    D, S = _matrices()
    S = S if past else torch.zeros_like(S)
    config = StabilityConfig(
        reading=reading, temperature=0.7, direction=direction, magnitude=magnitude
    )
    loss, gradient = dense_stability(D, S, 0.2, config)
    B = D.clone().requires_grad_()
    eye = torch.eye(7, dtype=torch.float64)
    expected = reference.stability_loss(
        eye, B, 1.0, S, 0.2, 0.7, reading, direction=direction, magnitude=magnitude
    )
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=1e-12)
    if expected.requires_grad:
        (wanted,) = torch.autograd.grad(expected, B)
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)
    else:
        assert not bool(gradient.any())
    assert not D.requires_grad


@pytest.mark.parametrize("reading", ["elementwise", "product"])
def test_no_update_has_a_finite_gradient(reading):
    D, S = _matrices()
    loss, gradient = dense_stability(torch.zeros_like(D), S, 0.2, StabilityConfig(reading=reading))
    assert float(loss) == 0.0
    assert not bool(gradient.any())


def test_the_scale_is_of_past_and_origin():
    one = torch.ones(2, 3)
    assert row_scale(0 * one, one) == pytest.approx(0.05)
    assert row_scale(3 * one, one) == pytest.approx((9 + 0.0025) ** 0.5)
    assert row_scale(0 * one, 0 * one) == 1.0
