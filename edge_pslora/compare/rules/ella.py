"""ELLA: an update avoids the entries in which the past has its energy (arXiv 2601.02232).

L = task loss + lambda |D_t o S|_F^2, S = D_1 + ... + D_{t-1}, o element-wise. The paper shows that a
gradient step G then shrinks to G_ij / (1 + lambda S_ij^2): strongly where the past is large, hardly
where it is small. Its full text was not at hand; the two formulas are as summaries of it print them,
and they agree with each other. Uncertain: lambda, and whether the paper weighs layers; S is as small as
1e-3, so that lambda would depend on the model. Here the loss is taken in the units of our stability
loss instead,

    mean_ij (D_ij S_ij / rms(S))^2 / scale^2,   scale as in `core.stability`,

which is the paper's with lambda' = lambda / (n rms(S)^2 scale^2).
"""

from __future__ import annotations

import torch

from edge_pslora.compare.rule import Round, Step, live_update, summed


def energy_overlap(D: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
    """|D o S|_F^2 of an update D and the sum of the earlier ones S, both [out, in]."""
    return (D * past).square().sum()


def shrunk(step: torch.Tensor, past: torch.Tensor, weight: float) -> torch.Tensor:
    """The minimiser of |D - G|^2 + weight |D o S|^2 for a step G [out, in]: G_ij / (1 + weight
    S_ij^2)."""
    return step / (1 + weight * past.square())


class Ella:
    """weight: lambda. units: of each target rms(S)^2 scale^2 n, what |D o S|^2 is divided by.

    S is what the session starts from, W - W0: nothing is kept beyond the deployed model and the base.
    """

    kept_bytes = 0

    def __init__(self, weight: float = 0.1) -> None:
        self.weight = weight
        self.units: dict[str, float] = {}

    def begin(self, round: Round) -> None:
        self.units = {
            name: _unit(past, round.base(round.adapters[name].target.weight_name))
            for name, past in round.past.items()
            if bool(past.any())
        }

    def loss(self, round: Round, step: Step) -> torch.Tensor | None:
        if not self.units:
            return None
        overlaps = [
            energy_overlap(live_update(round.adapters[name]), round.past[name]) / unit
            for name, unit in self.units.items()
        ]
        return self.weight * torch.stack(overlaps).sum() / len(round.adapters)

    def after_step(self, round: Round) -> None:
        pass

    def end(self, round: Round) -> dict[str, torch.Tensor]:
        return summed(round)


def _unit(past: torch.Tensor, base: torch.Tensor) -> float:
    square = float(past.double().square().mean())
    return square * squared_scale(square, float(base.double().square().mean())) * past.numel()


def squared_scale(past_square: float, base_square: float, base_share: float = 0.05) -> float:
    """scale^2 of `core.stability.stability_target`, from mean squares of S and of W0."""
    return past_square + base_share**2 * base_square
