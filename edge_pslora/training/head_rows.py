"""The past of a linear head's rows: what protects the labels of earlier sessions.

A row (weight | bias, d + 1 numbers) has an origin: its value at the end of the session that learnt it.
Later changes D are treated as those of any layer: the stability loss compares them with their sum S,
and the merge rule joins them. S is dense here, so it is exact. Rows of new labels are free.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edge_pslora.config import AdaptConfig, MergeRule, StabilityConfig
from edge_pslora.core.dense_stability import dense_stability, row_scale
from edge_pslora.core.merge import merge_step


@dataclass(frozen=True)
class RowPast:
    """origin, history S [C, d+1], float32; updates int64 [C]: how many changes S sums up."""

    origin: torch.Tensor
    history: torch.Tensor
    updates: torch.Tensor


@dataclass(frozen=True)
class RowPenalty:
    """The stability loss on the first K rows of a head in training.

    weight, bias: the head's parameters, [C, d] and [C] or None without one. start, history [K, d+1].
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    start: torch.Tensor
    history: torch.Tensor
    scale: float


def protects_rows(config: AdaptConfig) -> bool:
    """Without a loss and a merge rule there is nothing to protect rows with."""
    return config.head.protect and (config.stability.active or config.merge != "none")


def joined(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Rows [C, d+1] of weight [C, d] and bias [C], copied."""
    return torch.cat([weight.detach(), bias.detach()[:, None]], dim=1)


def past_of(rows: torch.Tensor, past: RowPast | None) -> RowPast:
    """The past of rows [K, d+1] of earlier sessions; what was not recorded starts here."""
    if past is not None:
        return past
    return RowPast(rows.clone(), torch.zeros_like(rows), torch.zeros(len(rows), dtype=torch.int64))


def starting_rows(rows: torch.Tensor, past: RowPast, rule: MergeRule) -> torch.Tensor:
    """Where training starts from: the rows that serve, or under `cumulative` the running sum."""
    return past.origin + past.history if rule == "cumulative" else rows


def row_penalty(
    weight: torch.Tensor, bias: torch.Tensor | None, start: torch.Tensor, past: RowPast
) -> RowPenalty:
    return RowPenalty(weight, bias, start, past.history, row_scale(past.history, past.origin))


@torch.no_grad()
def row_stability(
    penalty: RowPenalty, config: StabilityConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """(L_s of the rows, its gradient [K, d+1])."""
    known, size = len(penalty.start), penalty.weight.shape[1]
    bias = penalty.start[:, size] if penalty.bias is None else penalty.bias[:known]
    D = joined(penalty.weight[:known], bias) - penalty.start
    return dense_stability(D, penalty.history, penalty.scale, config)


@torch.no_grad()
def add_to_rows(penalty: RowPenalty, gradient: torch.Tensor, factor: float) -> None:
    """Adds factor * gradient [K, d+1] to the gradients of the rows."""
    known, size = len(penalty.start), penalty.weight.shape[1]
    if penalty.weight.grad is not None:
        penalty.weight.grad[:known].add_(gradient[:, :size], alpha=factor)
    if penalty.bias is not None and penalty.bias.grad is not None:
        penalty.bias.grad[:known].add_(gradient[:, size], alpha=factor)


def merge_rows(
    rule: MergeRule, served: torch.Tensor, start: torch.Tensor, trained: torch.Tensor, past: RowPast
) -> tuple[torch.Tensor, RowPast]:
    """All rows [C, d+1] after the merge, and their past; no argument is changed.

    served, start [K, d+1]: the old rows before the session and where training started.
    trained [C, d+1]: every row after it. Old rows follow the rule, each counting its own updates.
    """
    known = len(served)
    update = trained[:known] - start
    history = past.history + update
    newer = history if rule == "cumulative" else update
    updates = past.updates + 1
    rows = trained.clone()
    for count in sorted(set(updates.tolist())):
        of_age = (updates == count).nonzero()[:, 0]
        merged = merge_step(
            rule,
            (served - past.origin)[of_age].numpy(),
            newer[of_age].numpy(),
            count,
        )
        rows[of_age] = past.origin[of_age] + torch.from_numpy(merged)
    fresh = trained[known:]
    return rows, RowPast(
        torch.cat([past.origin, fresh]),
        torch.cat([history, torch.zeros_like(fresh)]),
        torch.cat([updates, torch.zeros(len(fresh), dtype=torch.int64)]),
    )
