"""PS-LoRA as the formula reads: S and D dense, the loss built from them, autograd for the rest.

The same statements as tests/reference.py, in the dtype of the arguments.
"""

from __future__ import annotations

import torch

from edge_pslora.config import StabilityConfig


def naive_loss(
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    S: torch.Tensor,
    scale: float,
    config: StabilityConfig,
) -> torch.Tensor:
    """L_s of one layer (METHOD.md, Eq. 4) for A [r, in], B [out, r], S [out, in] not zero."""
    D = scaling * (B @ A)
    a = config.temperature / S.pow(2).mean().sqrt()
    c = 1 - torch.tanh(a * S) * torch.tanh(a * D)
    if config.reading == "elementwise":
        return (c * D**2).mean() / scale**2
    return D.pow(2).mean().sqrt() / scale * c.mean()
