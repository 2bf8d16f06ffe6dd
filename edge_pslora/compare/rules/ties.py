"""TIES merging in constant memory (arXiv 2306.01708, section 4): trim, elect a sign, disjoint mean.

Of every task vector the largest entries are kept (a share `density`, 0.2 in the paper), the sign of
each entry is that of the sum, and the mean is taken over the entries of that sign. It needs no more of
the past than four numbers an entry, the sums and the counts of what was positive and of what was
negative, and equals the merge of all T task vectors at once. Trimmed layer by layer, as PEFT does it;
the paper trims the whole task vector. Where the sum is zero the sign is positive, as in PEFT.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edge_pslora.compare.rule import Round, Step, updates


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


class Ties:
    """The rule. density: share of a task vector that is kept.

    independent: every session is trained on W0, as the paper has it, so that D_t is its task vector;
    else one goes on from the other and R_t = D_1 + ... + D_t is, as MagMax (arXiv 2407.06322) compares
    it. Kept: four numbers of each entry, and R_t where it is needed.
    """

    def __init__(self, density: float = 0.2, *, independent: bool = True) -> None:
        self.density, self.independent = density, independent
        self.sums: dict[str, SignedSums] = {}
        self.running: dict[str, torch.Tensor] = {}

    def begin(self, round: Round) -> None:
        if not self.running:
            self.running = {name: torch.zeros_like(past) for name, past in round.past.items()}
        round.start_from(self.running)

    def loss(self, round: Round, step: Step) -> torch.Tensor | None:
        return None

    def after_step(self, round: Round) -> None:
        pass

    def end(self, round: Round) -> dict[str, torch.Tensor]:
        for name, delta in updates(round).items():
            vector = self.running[name] + delta
            before = self.sums.get(name) or empty_sums((vector.shape[0], vector.shape[1]))
            self.sums[name] = with_vector(before, vector, self.density)
            if not self.independent:
                self.running[name] = vector
        return {name: ties_merge(sums) for name, sums in self.sums.items()}

    @property
    def kept_bytes(self) -> int:
        running = () if self.independent else self.running.values()
        return sum(sums.nbytes for sums in self.sums.values()) + sum(4 * r.numel() for r in running)
