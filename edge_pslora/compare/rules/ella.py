"""ELLA: an update avoids the entries in which the past has its energy (arXiv 2601.02232).

L = task loss + lambda |D_t o S|_F^2, S = D_1 + ... + D_{t-1}, o element-wise. The paper shows that a gradient
step G then shrinks to G_ij / (1 + lambda S_ij^2): strongly where the past is large, hardly where it is
small. Its full text was not at hand; the two formulas are as summaries of it print them, and they agree with
each other. Uncertain: lambda, and whether the paper weighs layers; S is as small as 1e-3, so that lambda would
depend on the model. Here the loss is taken in the units of our stability loss instead,

    mean_ij (D_ij S_ij / rms(S))^2 / scale^2,   scale as in `core.stability`,

which is the paper's with lambda' = lambda / (n rms(S)^2 scale^2).
"""

from __future__ import annotations

import torch


def energy_overlap(D: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
    """|D o S|_F^2 of an update D and the sum of the earlier ones S, both [out, in]."""
    return (D * past).square().sum()


def shrunk(step: torch.Tensor, past: torch.Tensor, weight: float) -> torch.Tensor:
    """The minimiser of |D - G|^2 + weight |D o S|^2 for a step G [out, in]: G_ij / (1 + weight S_ij^2)."""
    return step / (1 + weight * past.square())
