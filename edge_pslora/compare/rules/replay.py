"""Replay of stored samples (ER), with their old answers (DER++), and joined to any other rule.

ER: L = loss(new batch) + weight K / B loss(K from the memory), K = B stored samples as there are new
ones, or all where fewer are stored: up to a factor the mean over both, as where batches are joined.
DER++ (arXiv 2004.07211, Eq. 6): L = loss(new) + alpha |h(x') - z'|^2 + beta loss(h(x''), y''), x' and
x'' drawn apart from each other, z' the logits that x' had when it was stored; the square is a mean over
samples and logits, as in the authors' code. beta = 0.5 is in the middle of what they use; alpha = 1 by
validation (benchmarks/LOG.md). Chosen: samples are offered to the memory when their session has ended,
in an order that is drawn, not during it: they are in the session's batches anyhow. Logits of labels
that came later are not compared. With the analytic head a stored sample is answered by the mean of the
cross-fitted heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from edge_pslora.compare.rule import Round, Rule, Step, summed
from edge_pslora.compare.rules.pslora import PsLora
from edge_pslora.compare.rules.reservoir import Kept, offered, shared
from edge_pslora.models.types import EncodedInputs
from edge_pslora.training.batches import sorted_batches

CAPACITY = 200  # samples; the smallest memory of DER++'s tables
_MEMORY = 11  # keeps what is drawn for the memory apart from other draws with the same seed
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Replayed:
    """K stored samples: inputs, targets as the task encodes them [K, ...], logits [K, C] or None."""

    inputs: EncodedInputs
    wanted: torch.Tensor
    logits: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.wanted)


class Replay:
    """The rule. weight: ER's, or DER++'s beta. dark: DER++'s alpha, 0 for plain replay.

    capacity: samples in a reservoir. share: of each session's samples instead, without a limit.
    """

    def __init__(
        self,
        capacity: int = CAPACITY,
        weight: float = 1.0,
        dark: float = 0.0,
        share: float | None = None,
    ) -> None:
        self.capacity, self.weight, self.dark, self.share = capacity, weight, dark, share
        self.kept: Kept | None = None
        self.replayed: Replayed | None = None

    def begin(self, round: Round) -> None:
        self.replayed = None if self.kept is None else _replayed(self.kept, round)

    def loss(self, round: Round, step: Step) -> torch.Tensor | None:
        if self.replayed is None:
            return None
        count = len(step.samples)
        rows = _drawn(self.replayed, count, round.generator)
        share = len(rows) / count
        inputs = self.replayed.inputs.batch(rows)
        _, logits = round.answer(inputs)
        loss = self.weight * share * round.task_loss(logits, self.replayed.wanted[rows], inputs)
        if self.dark == 0.0 or self.replayed.logits is None:
            return loss
        rows = _drawn(self.replayed, count, round.generator)
        _, logits = round.answer(self.replayed.inputs.batch(rows))
        return loss + self.dark * share * dark_loss(logits, self.replayed.logits[rows])

    def after_step(self, round: Round) -> None:
        pass

    def end(self, round: Round) -> dict[str, torch.Tensor]:
        draws = np.random.Generator(
            np.random.PCG64([round.config.train.seed, round.session, _MEMORY])
        )
        count = len(round.data.targets)
        order = draws.permutation(count).astype(np.int64)

        def take(rows: Indices) -> Kept:
            return self._taken(round, order[rows])

        if self.share is None:
            self.kept = offered(self.kept, take, count, self.capacity, draws)
        else:
            self.kept = shared(self.kept, take, count, self.share)
        self.replayed = None
        return summed(round)

    @property
    def kept_bytes(self) -> int:
        return 0 if self.kept is None else self.kept.nbytes

    def _taken(self, round: Round, rows: Indices) -> Kept:
        inputs = dict(round.data.inputs.to_arrays(rows))
        if self.dark > 0:
            inputs[_LOGITS] = _logits(round, rows)
        return Kept(inputs, round.data.targets[rows])


_LOGITS = "stored logits"  # NaN for labels that were not known yet


def dark_loss(logits: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """Mean of (h - z)^2 over logits [B, C] and stored ones [B, C'], C' <= C; NaN is not compared."""
    known = logits[:, : stored.shape[1]]
    there = ~stored.isnan()
    return (known - stored)[there].square().sum() / there.sum().clamp_min(1)


@dataclass(frozen=True)
class Joined:
    """Two rules at once: both penalties, and the merge of the first."""

    first: Rule
    second: Rule

    def begin(self, round: Round) -> None:
        self.first.begin(round)
        self.second.begin(round)

    def loss(self, round: Round, step: Step) -> torch.Tensor | None:
        losses = [rule.loss(round, step) for rule in (self.first, self.second)]
        present = [loss for loss in losses if loss is not None]
        return torch.stack(present).sum() if present else None

    def after_step(self, round: Round) -> None:
        self.first.after_step(round)
        self.second.after_step(round)

    def end(self, round: Round) -> dict[str, torch.Tensor]:
        merged = self.first.end(round)
        self.second.end(round)
        return merged

    @property
    def kept_bytes(self) -> int:
        return self.first.kept_bytes + self.second.kept_bytes


def der_pp() -> Replay:
    """DER++ as it is compared here."""
    return Replay(weight=0.5, dark=1.0)


def ps_lora_replay() -> Joined:
    """PS-LoRA, and plain replay of a hundredth of all samples."""
    return Joined(PsLora(), Replay(share=0.01))


def _replayed(kept: Kept, round: Round) -> Replayed:
    arrays = {name: array for name, array in kept.inputs.items() if name != _LOGITS}
    logits = kept.inputs.get(_LOGITS)
    return Replayed(
        round.model.encoder.from_arrays(arrays),
        round.task.encode(kept.targets, round.labels),
        None if logits is None else torch.from_numpy(logits),
    )


def _drawn(replayed: Replayed, count: int, generator: torch.Generator) -> Indices:
    """`count` of the stored samples, or all if there are fewer, in the order of their numbers."""
    chosen = torch.randperm(len(replayed), generator=generator)[:count].sort().values
    return chosen.numpy().astype(np.int64)


@torch.no_grad()
def _logits(round: Round, rows: Indices) -> npt.NDArray[np.float32]:
    """float32 [K, C] of some of the session's samples, as the model answers at its end."""
    found = np.zeros((len(rows), len(round.labels)), np.float32)
    for batch in sorted_batches(round.data.inputs.lengths()[rows], round.config.train.batch_size):
        found[batch] = round.answer(round.data.inputs.batch(rows[batch]))[1].numpy()
    return found
