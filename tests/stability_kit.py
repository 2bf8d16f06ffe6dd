"""Random layers for the tests of the stability loss, and what the reference makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import reference
import torch
from torch import Tensor

from edge_pslora.config import StabilityConfig
from edge_pslora.core.stability import (
    StabilityStack,
    StabilityTarget,
    stability_target,
    stack_targets,
)
from edge_pslora.core.stability_loss import StabilityTerms

SCALING = 0.5
EXACT = StabilityConfig(row_stride=1)


@dataclass(frozen=True)
class Case:
    """N layers of one shape: A [N, r, in], B [N, out, r] and their targets."""

    A: Tensor
    B: Tensor
    targets: tuple[StabilityTarget, ...]

    def stack(self, config: StabilityConfig, device: str = "cpu") -> StabilityStack:
        return stack_targets(self.targets, config, self.A.dtype, device)


def case(
    out: int,
    size: int,
    r: int,
    ranks: tuple[int, ...],
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    update: float = 1.0,
) -> Case:
    """One layer per entry of `ranks`, the rank of its history. update: size of B."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype)

    A, B = draw(len(ranks), r, size), update * draw(len(ranks), out, r)
    targets = [stability_target(draw(out, k), draw(k, size), base_rms=0.7) for k in ranks]
    return Case(A, B, tuple(targets))


def expected(
    made: Case, config: StabilityConfig, T: list[Tensor | None] | None = None
) -> StabilityTerms:
    """The reference's losses and, by autograd, its gradients, in float64."""
    losses, grads_A, grads_B = [], [], []
    for i, target in enumerate(made.targets):
        A = made.A[i].double().requires_grad_(True)
        B = made.B[i].double().requires_grad_(True)
        S = target.left.double() @ target.right.double()
        loss = reference.stability_loss(
            A,
            B,
            SCALING,
            S,
            target.scale,
            config.temperature,
            config.reading,
            config.direction,
            config.magnitude,
            None if T is None else T[i],
        )
        if loss.requires_grad:
            loss.backward()
        losses.append(loss.detach())
        grads_A.append(torch.zeros_like(A) if A.grad is None else A.grad)
        grads_B.append(torch.zeros_like(B) if B.grad is None else B.grad)
    return StabilityTerms(torch.stack(losses), torch.stack(grads_A), torch.stack(grads_B))


def assert_equal(found: StabilityTerms, wanted: StabilityTerms, relative: float) -> None:
    """Each loss to `relative`, each layer's gradient to `relative` of its norm."""
    torch.testing.assert_close(found.loss.double(), wanted.loss, rtol=relative, atol=1e-300)
    for one, other in ((found.grad_A, wanted.grad_A), (found.grad_B, wanted.grad_B)):
        assert one.shape == other.shape
        for mine, theirs in zip(one.double(), other, strict=True):
            assert float((mine - theirs).norm()) <= relative * float(theirs.norm())
