"""SLAO: one LoRA for all sessions, A orthonormal at the start, B averaged over time (arXiv 2512.23017).

Session i trains on W0 + s B A, from A = Q^T with Q R = A_{i-1}^T (R with a positive diagonal, which
makes it unique) and B = B_{i-1}, both as they came out of session i - 1's training. Then

    A_merge = A_i,   B_merge = B_merge + (B_i - B_merge) / sqrt(i),

and W0 + s B_merge A_merge is deployed. Session 1 starts as LoRA does. The formulas are those of a
summary of the paper and of an implementation by others, which agree; uncertain: the scale of A at the
start of session 1, which both leave at LoRA's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from edge_pslora.compare.rule import Round, Step


def orthonormal_rows(A: torch.Tensor) -> torch.Tensor:
    """Q^T [r, in] of A^T = Q R, R with a positive diagonal: orthonormal rows that span those of A."""
    Q, R = torch.linalg.qr(A.T)
    signs = torch.where(R.diagonal() < 0, -1.0, 1.0).to(Q.dtype)
    rows: torch.Tensor = (Q * signs).T.contiguous()
    return rows


def time_weight(session: int) -> float:
    """lambda(i) = 1 / sqrt(i), session i counted from 1."""
    return 1 / math.sqrt(session)


def averaged(merged: torch.Tensor, trained: torch.Tensor, session: int) -> torch.Tensor:
    """B_merge after session i: merged + lambda(i) (trained - merged)."""
    return merged + time_weight(session) * (trained - merged)


@dataclass(frozen=True)
class OneLora:
    """Of one target after a session: A [r, in] and B [out, r] as trained, and B_merge."""

    A: torch.Tensor
    B: torch.Tensor
    merged: torch.Tensor


class Slao:
    """The rule; kept: A, B and B_merge of every target, whatever the number of sessions."""

    def __init__(self) -> None:
        self.last: dict[str, OneLora] = {}

    def begin(self, round: Round) -> None:
        if not self.last:
            return
        round.start_from({name: torch.zeros_like(past) for name, past in round.past.items()})
        with torch.no_grad():
            for name, adapter in round.adapters.items():
                adapter.A.copy_(orthonormal_rows(self.last[name].A))
                adapter.B.copy_(self.last[name].B)

    def loss(self, round: Round, step: Step) -> torch.Tensor | None:
        return None

    def after_step(self, round: Round) -> None:
        pass

    def end(self, round: Round) -> dict[str, torch.Tensor]:
        for name, adapter in round.adapters.items():
            A, B = adapter.A.detach().clone(), adapter.B.detach().clone()
            before = self.last.get(name)
            merged = B if before is None else averaged(before.merged, B, round.session)
            self.last[name] = OneLora(A, B, merged)
        return {
            name: round.adapters[name].scaling * (one.merged @ one.A)
            for name, one in self.last.items()
        }

    @property
    def kept_bytes(self) -> int:
        tensors = [t for one in self.last.values() for t in (one.A, one.B, one.merged)]
        return sum(t.numel() * t.element_size() for t in tensors)
