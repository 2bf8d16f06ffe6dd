"""How much new data conflict with the past, before anything is trained; and how strongly to hold on
then.

A step against the gradient G of the new data's loss moves an entry away from the past S where G and S
have the same sign. Weighted with the size of both, the share of such entries is

    c = sum_ij |G_ij S_ij| [G_ij S_ij > 0] / sum_ij |G_ij S_ij|,

0: all steps go on in the direction of the past; 1/2: they have nothing to do with it; 1: all of them
undo it. Ours. (The magnitude-weighted conflict ratio of PS-LoRA, arXiv 2512.08960, compares two
gradients so.)
"""

from __future__ import annotations

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


def weight_for(conflict: float, weight: float, most: float = 10.0) -> float:
    """The stability weight: `weight` where the data are neutral, as the odds c / (1 - c) else.

    Between weight / most and weight * most.
    """
    odds = conflict / max(1.0 - conflict, 1e-12)
    return weight * min(max(odds, 1.0 / most), most)
