"""How much new data conflict with the past, before anything is trained; and how strongly to hold on
then.

A step against the gradient G of the new data's loss moves an entry away from the past S where G and S
have the same sign. Weighted with the size of both, the share of such entries is

    c = sum_ij |G_ij S_ij| [G_ij S_ij > 0] / sum_ij |G_ij S_ij|,

0: all steps go on in the direction of the past; 1/2: they have nothing to do with it; 1: all of them
undo it. (The magnitude-weighted conflict ratio of PS-LoRA, arXiv 2512.08960, compares two gradients
so.) With stored samples there is a gradient of their loss to compare with, and (1 - cos) / 2 of the
angle between both (as in GEM, arXiv 1706.08840) says the same: 1 where a step for the new undoes the
old.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

NEUTRAL = 0.5


def conflict(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """c over the gradients G and the pasts S of all layers, each pair of one shape.

    NEUTRAL where there is no past yet, or no gradient.
    """
    against, total = 0.0, 0.0
    for gradient, past in pairs:
        products = gradient.double() * past.double()
        against += float(products.clamp_min(0.0).sum())
        total += float(products.abs().sum())
    return against / total if total > 0 else NEUTRAL


def opposition(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """(1 - cos) / 2 between the new gradients and the old ones of all layers, taken as two vectors."""
    product, new, old = 0.0, 0.0, 0.0
    for one, other in pairs:
        product += float((one.double() * other.double()).sum())
        new += float(one.double().square().sum())
        old += float(other.double().square().sum())
    size = math.sqrt(new * old)
    return (1 - product / size) / 2 if size > 0 else NEUTRAL


def weight_for(conflict: float, weight: float, most: float = 10.0) -> float:
    """The stability weight: from weight / most at c = 0 over `weight` at c = 1/2 to weight * most."""
    return float(weight * most ** (2 * conflict - 1))
