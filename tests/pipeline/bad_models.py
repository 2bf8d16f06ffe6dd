"""Factories for the tests of bad input."""

from __future__ import annotations

from torch import nn


def linear() -> nn.Module:
    """Rows [N, 64] -> features [N, 16]."""
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16))
