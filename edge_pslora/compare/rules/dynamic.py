"""A stability weight that follows how much the new data conflict with the past. Ours."""

from __future__ import annotations

import torch

from edge_pslora.compare.rule import Matrices, Round, Step
from edge_pslora.compare.rules.conflict import NEUTRAL, conflict, opposition, weight_for
from edge_pslora.compare.rules.held import HeldOut
from edge_pslora.compare.rules.pslora import PsLora
from edge_pslora.config import MergeRule, StabilityConfig
from edge_pslora.training.batches import sorted_batches
from edge_pslora.training.session import SessionData
from edge_pslora.training.targets import as_matrix

LOOKS = 4  # first batches whose gradients are looked at


class Dynamic:
    """The weight of the stability loss in a session: the configured one, changed by the conflict of the
    gradients G of the first `LOOKS` batches, by the weights of the targets.

    held: None: G is compared with M_{t-1}, and no sample is stored. Else with the gradient on the
    anchors of earlier sessions before the first step, each session counting the same. Until the batches
    are seen the configured weight holds.
    """

    def __init__(
        self,
        stability: StabilityConfig | None = None,
        merge: MergeRule = "constructive",
        held: HeldOut | None = None,
    ) -> None:
        # the weight is what follows the data here: a limit would hide it
        self.inner = PsLora(stability or StabilityConfig(most_pull=None), merge, self.weight_at)
        self.held = held
        self.gradients: dict[str, torch.Tensor] = {}
        self.old: dict[str, torch.Tensor] = {}
        self.looks = LOOKS
        self.weight = self.inner.stability.weight
        self.conflicts: list[float] = []  # of each session so far

    def begin(self, round: Round) -> None:
        self.inner.begin(round)
        self.weight = self.inner.stability.weight
        self.gradients, self.old = {}, {}
        self.looks = LOOKS if round.session == 1 else 0
        if round.session == 1:
            self.conflicts.append(NEUTRAL)
            return
        for weight in round.weights.values():
            weight.requires_grad_(True)
        for data in [] if self.held is None else self.held.earlier(round):
            _add(self.old, anchor_gradient(round, data))

    def weight_at(self, round: Round, step: Step) -> float:
        if self.looks < LOOKS:
            _add(self.gradients, weight_gradient(round, step.task_loss))
            self.looks += 1
            if self.looks == LOOKS:
                self._settle(round)
        return self.weight

    def loss(self, round: Round, step: Step) -> torch.Tensor | None:
        return self.inner.loss(round, step)

    def after_step(self, round: Round) -> None:
        for weight in round.weights.values():
            weight.grad = None

    def end(self, round: Round) -> dict[str, torch.Tensor]:
        if self.looks < LOOKS:  # fewer batches than that
            self._settle(round)
        if self.held is not None:
            self.held.remember(round)
        return self.inner.end(round)

    @property
    def kept_bytes(self) -> int:
        return self.inner.kept_bytes + (0 if self.held is None else self.held.nbytes)

    def _settle(self, round: Round) -> None:
        for weight in round.weights.values():
            weight.requires_grad_(False)
        new = self.gradients
        if self.old:
            found = opposition((new[name], self.old[name]) for name in new)
        else:
            found = conflict((new[name], round.past[name]) for name in new)
        self.conflicts.append(found)
        self.weight = weight_for(found, self.inner.stability.weight)
        self.gradients, self.old, self.looks = {}, {}, LOOKS


def weight_gradient(round: Round, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """dL/dW [out, in] of every target, whose weights require gradients; the graph stays."""
    names = list(round.weights)
    found = torch.autograd.grad(loss, [round.weights[name] for name in names], retain_graph=True)
    return {
        name: as_matrix(gradient, round.adapters[name].target)
        for name, gradient in zip(names, found, strict=True)
    }


def anchor_gradient(round: Round, data: SessionData) -> dict[str, torch.Tensor]:
    """The gradient of the mean loss of some samples, which are not of the session."""
    wanted = round.task.encode(data.targets, round.labels)
    total: dict[str, torch.Tensor] = {}
    for batch in sorted_batches(data.inputs.lengths(), round.config.train.batch_size):
        inputs = data.inputs.batch(batch)
        _, logits = round.answer(inputs)
        share = len(batch) / len(data.targets)
        _add(total, weight_gradient(round, share * round.task_loss(logits, wanted[batch], inputs)))
    return total


def _add(total: dict[str, torch.Tensor], more: Matrices) -> None:
    for name, matrix in more.items():
        total[name] = total[name] + matrix if name in total else matrix
