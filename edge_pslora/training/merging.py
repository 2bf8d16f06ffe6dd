"""From trained adapters to merged weights: past and update joined, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from edge_pslora.config import MergeRule
from edge_pslora.core.merge import merge_step
from edge_pslora.errors import EdgePsloraError
from edge_pslora.models.types import Backbone
from edge_pslora.training.memory import BaseWeights
from edge_pslora.training.targets import Target, as_matrix, as_weight

MERGE_TOLERANCE = 1e-3  # largest relative difference of features, merged weights against adapters

Matrices = Mapping[str, torch.Tensor]  # target name -> [out, in]


@dataclass(frozen=True)
class TargetWeights:
    """The targets' weights inside a model, and their base values."""

    targets: tuple[Target, ...]
    parameters: Mapping[str, nn.Parameter]  # by weight name
    base: BaseWeights

    def past(self) -> dict[str, torch.Tensor]:
        """M = W - W0 of every target."""
        return {
            t.name: as_matrix(self.parameters[t.weight_name].detach().cpu(), t)
            - as_matrix(self.base(t.weight_name), t)
            for t in self.targets
        }

    def set_to(self, deltas: Matrices) -> None:
        """W <- W0 + delta for every target."""
        for t in self.targets:
            base = self.base(t.weight_name)
            with torch.no_grad():
                self.parameters[t.weight_name].copy_(
                    base + as_weight(deltas[t.name], t, base.shape)
                )

    def add(self, deltas: Matrices) -> None:
        """W <- W + delta for every target."""
        for t in self.targets:
            weight = self.parameters[t.weight_name]
            with torch.no_grad():
                weight.add_(as_weight(deltas[t.name], t, weight.shape).to(weight.device))


def target_weights(
    model: nn.Module, targets: tuple[Target, ...], base: BaseWeights
) -> TargetWeights:
    names = {t.weight_name for t in targets}
    return TargetWeights(targets, {n: p for n, p in model.named_parameters() if n in names}, base)


def prove_deltas(
    backbone: Backbone,
    weights: TargetWeights,
    deltas: Matrices,
    probe: dict[str, torch.Tensor],
    expected: torch.Tensor,
) -> float:
    """W <- W + D; the relative difference of the features [N, d] to what the adapters computed.

    Raises:
        EdgePsloraError: it is above the tolerance: the merged model would be another one.
    """
    weights.add(deltas)
    with torch.no_grad():
        found = backbone(**probe)
    error = float((found - expected).norm() / expected.norm().clamp_min(1e-12))
    if not error <= MERGE_TOLERANCE:
        raise EdgePsloraError(
            "merge check",
            expected=f"merged weights to compute what the adapters did, within {MERGE_TOLERANCE}",
            found=f"a relative difference of {error:.2e}",
            remedy="the old model was kept; name other layers with --target",
        )
    return error


def running_sums(
    rule: MergeRule, past_sums: Matrices, deltas: Matrices
) -> dict[str, torch.Tensor] | None:
    """R_t = R_{t-1} + D_t, which `cumulative` merges and trains on from; None under other rules."""
    if rule != "cumulative":
        return None
    return {name: past_sums[name] + delta for name, delta in deltas.items()}


def merge_all(
    rule: MergeRule, past: Matrices, updates: Matrices, session: int
) -> dict[str, torch.Tensor]:
    """M_t of every target; updates: the D_t, or the R_t for `cumulative`."""
    return {
        name: torch.from_numpy(
            merge_step(rule, past[name].numpy(), update.numpy(), session)
        ).float()
        for name, update in updates.items()
    }


def kept_past(past: Matrices, merged: Matrices, session: int) -> dict[str, float]:
    """Per target the share of entries where the merge kept the past; 0 in the first session."""
    if session == 1:
        return dict.fromkeys(merged, 0.0)
    return {name: float((merged[name] == past[name]).float().mean()) for name in merged}


def sign_conflicts(past: Matrices, deltas: Matrices, session: int) -> dict[str, float | None]:
    """Per target the share of the update's entries with the opposite sign of M_{t-1}; None in the first
    session, which has no past."""
    if session == 1:
        return dict.fromkeys(deltas)
    return {
        name: float((torch.sign(past[name]) * torch.sign(delta) < 0).float().mean())
        for name, delta in deltas.items()
    }
