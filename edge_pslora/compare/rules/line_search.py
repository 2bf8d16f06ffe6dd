"""The merge coefficient by a line search on samples that were not trained on. Ours."""

from __future__ import annotations

import torch

from edge_pslora.compare.rule import Round, Step, updates
from edge_pslora.compare.rules.held import HeldOut
from edge_pslora.compare.rules.pslora import PsLora
from edge_pslora.config import StabilityConfig
from edge_pslora.training.batches import sorted_batches
from edge_pslora.training.session import SessionData

SHARES = (0.25, 0.5, 0.75, 1.0)


class LineSearch:
    """M_t = M_{t-1} + c D_t, c of SHARES with the least loss on held-out samples.

    Each session counts the same: the anchors of each earlier one, and the held-out samples of this one.
    They are answered by the head that trained the adapter: a linear one, or the mean of the
    cross-fitted ones. inner: a stability loss beside it; none by default.
    """

    def __init__(self, inner: PsLora | None = None) -> None:
        self.inner = inner or PsLora(StabilityConfig(weight=0.0), "none")
        self.held = HeldOut()
        self.chosen: list[float] = []  # c of each session so far

    def begin(self, round: Round) -> None:
        self.inner.begin(round)

    def loss(self, round: Round, step: Step) -> torch.Tensor | None:
        return self.inner.loss(round, step)

    def after_step(self, round: Round) -> None:
        pass

    def end(self, round: Round) -> dict[str, torch.Tensor]:
        sets = self.held.earlier(round)
        share = 1.0
        if sets:
            share = best_share(round, sets + ([self.held.now] if self.held.now else []))
        self.chosen.append(share)
        if self.inner.stability.active:
            self.inner.remember(round, share)
        self.held.remember(round)
        return {name: round.past[name] + share * D for name, D in updates(round).items()}

    @property
    def kept_bytes(self) -> int:
        return self.inner.kept_bytes + self.held.nbytes


@torch.no_grad()
def best_share(round: Round, sets: list[SessionData]) -> float:
    """c of SHARES whose loss, a mean over the sets, is least; of equals the largest."""
    whole = {name: adapter.B.detach().clone() for name, adapter in round.adapters.items()}
    losses = {}
    for share in SHARES:
        for name, adapter in round.adapters.items():
            adapter.B.copy_(share * whole[name])
        losses[share] = sum(_mean_loss(round, data) for data in sets) / len(sets)
    for name, adapter in round.adapters.items():
        adapter.B.copy_(whole[name])
    return min(reversed(SHARES), key=losses.__getitem__)


def _mean_loss(round: Round, data: SessionData) -> float:
    wanted = round.task.encode(data.targets, round.labels)
    total = 0.0
    for batch in sorted_batches(data.inputs.lengths(), round.config.train.batch_size):
        inputs = data.inputs.batch(batch)
        _, logits = round.answer(inputs)
        total += len(batch) * float(round.task_loss(logits, wanted[batch], inputs))
    return total / len(data.targets)
