"""The stability loss of a small dense matrix: rows of a linear head (METHOD.md, Eq. 4).

Where `stability_loss` works on factors and in tiles, this is Eq. 4 as it stands: D, its past S and
the loss are dense, and autograd differentiates.
"""

from __future__ import annotations

import torch

from edge_pslora.config import StabilityConfig


def dense_stability(
    D: torch.Tensor, S: torch.Tensor, scale: float, config: StabilityConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """L_s (no dimensions, no unit) and its gradient by D [K, d]; no argument is changed.

    D: the update in training. S: the sum of earlier ones. scale > 0: see `row_scale`.
    """
    with torch.enable_grad():
        D = D.detach().clone().requires_grad_()
        rms = float(S.pow(2).mean().sqrt())
        c = torch.ones_like(D)
        if config.direction and rms > 0:
            a = config.temperature / rms
            c = 1 - torch.tanh(a * S) * torch.tanh(a * D)
        if not config.magnitude:
            loss = c.mean()
        elif config.reading == "elementwise":
            loss = (c * D.square()).mean() / scale**2
        else:
            # vector_norm has the subgradient zero at D = 0
            size = torch.linalg.vector_norm(D) / D.numel() ** 0.5
            loss = size / scale * c.mean()
        if not loss.requires_grad:  # no direction yet and no magnitude: constant
            return loss, torch.zeros_like(D)
        (gradient,) = torch.autograd.grad(loss, D)
    return loss.detach(), gradient


def row_scale(S: torch.Tensor, origin: torch.Tensor, base_share: float = 0.05) -> float:
    """As of `stability_target`: an update is large when it outgrows the past, or a twentieth of what
    the rows were when learnt."""
    square = S.double().pow(2).mean() + base_share**2 * origin.double().pow(2).mean()
    scale = float(square.sqrt())
    return scale if scale > 0.0 else 1.0
