"""SLAO: one LoRA for all sessions, A orthonormal at the start, B averaged over time (arXiv 2512.23017).

Session i trains on W0 + s B A, from A = Q^T with Q R = A_{i-1}^T (R with a positive diagonal, which makes it
unique) and B = B_{i-1}, both as they came out of session i - 1's training. Then

    A_merge = A_i,   B_merge = B_merge + (B_i - B_merge) / sqrt(i),

and W0 + s B_merge A_merge is deployed. Session 1 starts as LoRA does. The formulas are those of a summary of
the paper and of an implementation by others, which agree; uncertain: the scale of A at the start of session 1,
which both leave at LoRA's own.
"""

from __future__ import annotations

import torch


def orthonormal_rows(A: torch.Tensor) -> torch.Tensor:
    """Q^T [r, in] of A^T = Q R, R with a positive diagonal: orthonormal rows that span those of A."""
    Q, R = torch.linalg.qr(A.T)
    signs = torch.where(R.diagonal() < 0, -1.0, 1.0).to(Q.dtype)
    return (Q * signs).T.contiguous()


def time_weight(session: int) -> float:
    """lambda(i) = 1 / sqrt(i), session i counted from 1."""
    return session**-0.5


def averaged(merged: torch.Tensor, trained: torch.Tensor, session: int) -> torch.Tensor:
    """B_merge after session i: merged + lambda(i) (trained - merged)."""
    return merged + time_weight(session) * (trained - merged)
