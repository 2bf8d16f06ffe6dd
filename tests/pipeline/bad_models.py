"""Factories for the tests of bad input."""

from __future__ import annotations

import torch
from torch import nn


def linear() -> nn.Module:
    """Rows [N, 64] -> features [N, 16]."""
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16))


class _Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(64, 16), nn.Linear(64, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.used(x)) + 0 * self.idle(x)


def with_an_idle_layer() -> nn.Module:
    """Rows [N, 64] -> features [N, 16], which the layer `idle` does not influence."""
    return _Idle()
