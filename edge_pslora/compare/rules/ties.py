"""TIES merging in constant memory (arXiv 2306.01708, section 4): trim, elect a sign, disjoint mean.

Of every task vector the largest entries are kept (a share `density`, 0.2 in the paper), the sign of each entry is
that of the sum, and the mean is taken over the entries of that sign. It needs no more of the past than four
numbers an entry, the sums and the counts of what was positive and of what was negative, and equals the merge of
all T task vectors at once. Trimmed layer by layer, as PEFT does it; the paper trims the whole task vector. Where
the sum is zero the sign is positive, as in PEFT.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SignedSums:
    """Over the trimmed task vectors of one layer, all [out, in]: sums float32 and counts int16."""

    positive: torch.Tensor
    negative: torch.Tensor
    positives: torch.Tensor
    negatives: torch.Tensor

    @property
    def nbytes(self) -> int:
        tensors = (self.positive, self.negative, self.positives, self.negatives)
        return sum(t.numel() * t.element_size() for t in tensors)


def empty_sums(shape: tuple[int, int]) -> SignedSums:
    counts = torch.zeros(shape, dtype=torch.int16)
    return SignedSums(torch.zeros(shape), torch.zeros(shape), counts, counts.clone())


def trimmed(vector: torch.Tensor, density: float) -> torch.Tensor:
    """The floor(density n) largest of n entries, the others zero."""
    flat = vector.reshape(-1)
    kept = torch.topk(flat.abs(), int(density * flat.numel())).indices
    out = torch.zeros_like(flat)
    out[kept] = flat[kept]
    return out.reshape(vector.shape)


def with_vector(sums: SignedSums, vector: torch.Tensor, density: float) -> SignedSums:
    """The sums with one more task vector [out, in]."""
    kept = trimmed(vector, density)
    return SignedSums(
        sums.positive + kept.clamp_min(0.0),
        sums.negative + kept.clamp_max(0.0),
        sums.positives + (kept > 0).to(torch.int16),
        sums.negatives + (kept < 0).to(torch.int16),
    )


def ties_merge(sums: SignedSums) -> torch.Tensor:
    """The merged task vector [out, in]; the paper scales it by lambda = 1."""
    up = sums.positive + sums.negative >= 0
    total = torch.where(up, sums.positive, sums.negative)
    count = torch.where(up, sums.positives, sums.negatives)
    return total / count.clamp_min(1)
