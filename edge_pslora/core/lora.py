"""The low-rank update of one weight: D = s B A (METHOD.md, "Notation")."""

from __future__ import annotations

import math

import torch


def relative_norm(delta: torch.Tensor, base: torch.Tensor) -> float:
    """|D| / |W0|, both [out, in] (Frobenius); 0 where the base is all zeros and sets no scale."""
    size = float(base.double().norm())
    return float(delta.double().norm()) / size if size > 0 else 0.0


def init_lora(
    out_features: int, in_features: int, rank: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A fresh adapter whose update is exactly zero.

    Returns:
        A [rank, in_features], uniform in +-1 / sqrt(in_features), and B [out_features, rank], zeros;
        both float32.
    """
    bound = 1.0 / math.sqrt(in_features)
    A = torch.empty(rank, in_features).uniform_(-bound, bound, generator=generator)
    return A, torch.zeros(out_features, rank)


def lora_delta(A: torch.Tensor, B: torch.Tensor, scaling: float) -> torch.Tensor:
    """D = scaling * B A, [out, in], for A [r, in] and B [out, r]."""
    return scaling * (B @ A)
