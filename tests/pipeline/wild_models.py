"""Networks that int8 cannot hold: wild weights on inputs that are always zero.

A row of such a layer has one scale for all of its weights. The wild ones change no output, but the useful
ones are rounded to zero.
"""

from __future__ import annotations

import torch
from torch import nn

WILD = 1e4
IDLE = 8  # inputs that are always zero
SIZE = 64


class _Wild(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(SIZE + IDLE, SIZE)
        with torch.no_grad():
            self.linear.weight[:, SIZE:] *= WILD

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.linear(torch.cat([x, 0.0 * x[:, :IDLE]], dim=1))
        return found


def one_wild() -> nn.Module:
    """Rows [N, 64] -> features [N, 64]; the second of three layers is wild."""
    plain = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)
    return nn.Sequential(plain[0], nn.ReLU(), _Wild(), nn.ReLU(), plain[1])


def all_wild() -> nn.Module:
    """Rows [N, 64] -> features [N, 64]; all layers are wild."""
    return nn.Sequential(_Wild(), nn.ReLU(), _Wild(), nn.ReLU(), _Wild())
