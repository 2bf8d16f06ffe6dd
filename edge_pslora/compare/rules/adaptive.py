"""Ours beyond the published method: a stability weight that follows the data, and a merge by line
search."""

from __future__ import annotations

import numpy as np
import torch

from edge_pslora.compare.rule import Round, Step, updates
from edge_pslora.compare.rules.conflict import NEUTRAL, conflict, weight_for
from edge_pslora.compare.rules.pslora import PsLora
from edge_pslora.config import MergeRule, StabilityConfig
from edge_pslora.training.anchor import AnchorSet, grow
from edge_pslora.training.batches import sorted_batches
from edge_pslora.training.session import SessionData
from edge_pslora.training.targets import as_matrix

LOOKS = 4  # first batches whose gradients are compared with the past
SHARES = (0.25, 0.5, 0.75, 1.0)


class Dynamic:
    """The weight of the stability loss in a session: the configured one times the odds of the conflict.

    The conflict is that of the gradients of the first `LOOKS` batches, by the weights of the targets,
    with M_{t-1}; until they are seen the configured weight holds. No sample is stored.
    """

    def __init__(
        self, stability: StabilityConfig | None = None, merge: MergeRule = "constructive"
    ) -> None:
        self.inner = PsLora(stability, merge, self.weight_at)
        self.gradients: dict[str, torch.Tensor] = {}
        self.looks = LOOKS
        self.weight = self.inner.stability.weight
        self.conflicts: list[float] = []  # of each session so far

    def begin(self, round: Round) -> None:
        self.inner.begin(round)
        self.weight = self.inner.stability.weight
        past = any(bool(past.any()) for past in round.past.values())
        self.looks = 0 if past else LOOKS
        self.gradients = {}
        if past:
            for weight in round.weights.values():
                weight.requires_grad_(True)
        else:
            self.conflicts.append(NEUTRAL)

    def weight_at(self, round: Round, step: Step) -> float:
        if self.looks < LOOKS:
            self._look(round, step)
        return self.weight

    def loss(self, round: Round, step: Step) -> torch.Tensor | None:
        return self.inner.loss(round, step)

    def after_step(self, round: Round) -> None:
        for weight in round.weights.values():
            weight.grad = None

    def end(self, round: Round) -> dict[str, torch.Tensor]:
        if self.looks < LOOKS:  # fewer batches than that
            self._settle(round)
        return self.inner.end(round)

    @property
    def kept_bytes(self) -> int:
        return self.inner.kept_bytes

    def _look(self, round: Round, step: Step) -> None:
        names = list(round.weights)
        found = torch.autograd.grad(
            step.task_loss, [round.weights[name] for name in names], retain_graph=True
        )
        for name, gradient in zip(names, found, strict=True):
            matrix = as_matrix(gradient, round.adapters[name].target)
            self.gradients[name] = self.gradients.get(name, 0.0) + matrix
        self.looks += 1
        if self.looks == LOOKS:
            self._settle(round)

    def _settle(self, round: Round) -> None:
        for weight in round.weights.values():
            weight.requires_grad_(False)
        pairs = [(gradient, round.past[name]) for name, gradient in self.gradients.items()]
        self.conflicts.append(conflict(pairs))
        self.weight = weight_for(self.conflicts[-1], self.inner.stability.weight)
        self.gradients = {}
        self.looks = LOOKS


class LineSearch:
    """M_t = M_{t-1} + c D_t, c of SHARES with the least loss on samples that were not trained on.

    Each session counts the same: the anchors of each earlier one, and the held-out samples of this one
    (`held`, set before the session). Stores samples: the anchor set of the product's gate, in its
    budget. They are answered by the head that trained the adapter: a linear one, or the mean of the
    cross-fitted ones.
    """

    def __init__(self, inner: PsLora | None = None) -> None:
        self.inner = inner or PsLora(StabilityConfig(weight=0.0), "none")
        self.held: SessionData | None = None
        self.anchors: AnchorSet | None = None
        self.chosen: list[float] = []  # c of each session so far

    def begin(self, round: Round) -> None:
        self.inner.begin(round)

    def loss(self, round: Round, step: Step) -> torch.Tensor | None:
        return self.inner.loss(round, step)

    def after_step(self, round: Round) -> None:
        pass

    def end(self, round: Round) -> dict[str, torch.Tensor]:
        sets = _sets(self.anchors, round)
        if self.held is not None:
            sets.append(self.held)
        share = 1.0 if self.anchors is None else best_share(round, sets)
        self.chosen.append(share)
        if self.inner.stability.active:
            self.inner.remember(round, share)
        if self.held is not None:
            self.anchors = _with_held(self.anchors, self.held, round)
        return {name: round.past[name] + share * D for name, D in updates(round).items()}

    @property
    def kept_bytes(self) -> int:
        kept = self.anchors
        size = 0 if kept is None else sum(a.nbytes for a in kept.inputs.values())
        return self.inner.kept_bytes + size + (0 if kept is None else 4 * len(kept))


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


def _sets(anchors: AnchorSet | None, round: Round) -> list[SessionData]:
    if anchors is None:
        return []
    found = []
    for session in np.unique(anchors.session):
        rows = anchors.session == session
        arrays = {name: array[rows] for name, array in anchors.inputs.items()}
        found.append(SessionData(round.model.encoder.from_arrays(arrays), anchors.targets[rows]))
    return found


def _with_held(anchors: AnchorSet | None, held: SessionData, round: Round) -> AnchorSet | None:
    rows = np.arange(len(held.targets), dtype=np.int64)
    session = np.full(len(rows), round.session, np.int32)
    new = AnchorSet(held.inputs.to_arrays(rows), held.targets, session)
    return grow(anchors, new, round.config.budget.anchor_bytes, round.config.train.seed)
