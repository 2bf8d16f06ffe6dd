"""N-LoRA: updates so sparse that they hardly collide (arXiv 2410.10179).

L = task loss + lambda |D|_1, D = s B A. The source states the l1 norm of the update; its lambda belongs
to models of another size, so that here |D|_1 is relative to |W0|_1 of the layer and lambda is chosen by
validation. An l1 norm under Adam makes entries small, not zero: what counts as zero in the collision
rate has to be named.
"""

from __future__ import annotations

import torch

from edge_pslora.compare.rule import PlainRule, Round, Step
from edge_pslora.core.lora import lora_delta


def update_size(A: torch.Tensor, B: torch.Tensor, scaling: float) -> torch.Tensor:
    """|s B A|_1, a sum over all entries of the update [out, in]."""
    return lora_delta(A, B, scaling).abs().sum()


def collision_rate(one: torch.Tensor, other: torch.Tensor, zero: float = 0.0) -> float:
    """Share of entries where both updates (same shape) are not zero: larger than `zero`."""
    return float(((one.abs() > zero) & (other.abs() > zero)).double().mean())


def n_lora(weight: float = 1.0) -> PlainRule:
    """The rule: weight * mean over the layers of |D|_1 / |W0|_1; updates add up."""

    def loss(round: Round, step: Step) -> torch.Tensor:
        sizes = [
            update_size(a.A, a.B, a.scaling) / round.base(a.target.weight_name).abs().sum()
            for a in round.adapters.values()
        ]
        return weight * torch.stack(sizes).mean()

    return PlainRule(loss=loss)
