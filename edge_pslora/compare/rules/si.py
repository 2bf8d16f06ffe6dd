"""Synaptic intelligence: weights that brought the loss down are held (arXiv 1703.04200, Eq. 3 to 5)."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

import torch

from edge_pslora.compare.rule import Round, Step, live_update, summed
from edge_pslora.compare.rules.drift import (
    Tensors,
    changes,
    head_start,
    nbytes,
    quadratic,
    weight_gradients,
    weights_with_gradients,
)


def path_step(path: Tensors, gradient: Tensors, moved: Tensors) -> Tensors:
    """omega_k - g_k dtheta_k: what one step of a parameter has taken off the task's loss (Eq. 3)."""
    return {name: path[name] - gradient[name] * moved[name] for name in path}


def importance(old: Tensors, path: Tensors, change: Tensors, damping: float) -> Tensors:
    """Omega_k + omega_k / (Delta_k^2 + xi), Delta_k: the session's whole change (Eq. 5).

    A path that raised the loss counts as zero, as in the authors' code: a negative importance would
    pull a parameter away without end.
    """
    new = {n: (path[n] / (change[n].square() + damping)).clamp_min(0.0) for n in path}
    return {
        n: torch.cat([old[n] + o[: len(old[n])], o[len(old[n]) :]]) if n in old else o
        for n, o in new.items()
    }


@dataclass
class SI:
    """strength: c. damping: xi. The gradient is that of the task loss alone.

    start: the head's old rows before the session. before, path: of the session so far, per parameter.
    """

    strength: float = 1.0
    damping: float = 1e-3
    omega: Tensors = field(default_factory=dict)
    start: Tensors = field(default_factory=dict)
    before: Tensors = field(default_factory=dict)
    first: Tensors = field(default_factory=dict)
    path: Tensors = field(default_factory=dict)
    head_gradient: Tensors = field(default_factory=dict)
    listening: ExitStack = field(default_factory=ExitStack)

    def begin(self, round: Round) -> None:
        self.start = head_start(round)
        self.first = self.before = _positions(round)
        self.path = {name: torch.zeros_like(value) for name, value in self.before.items()}
        self.listening.enter_context(weights_with_gradients(round))

    def loss(self, round: Round, step: Step) -> torch.Tensor | None:
        for weight in round.weights.values():
            weight.grad = None
        names, rows = list(round.head), list(round.head.values())
        if rows:  # the loop's own gradient of these has the penalty in it, and may be clipped
            found = torch.autograd.grad(step.task_loss, rows, retain_graph=True)
            self.head_gradient = {f"head.{n}": g for n, g in zip(names, found, strict=True)}
        if not self.omega:
            return None
        return self.strength * quadratic(self.omega, changes(round, self.start))

    def after_step(self, round: Round) -> None:
        now = _positions(round)
        moved = {name: now[name] - self.before[name] for name in now}
        gradient = weight_gradients(round) | self.head_gradient
        self.path, self.before = path_step(self.path, gradient, moved), now

    def end(self, round: Round) -> dict[str, torch.Tensor]:
        self.listening.close()
        change = {name: self.before[name] - self.first[name] for name in self.before}
        self.omega = importance(self.omega, self.path, change, self.damping)
        self.start, self.before, self.first, self.path, self.head_gradient = {}, {}, {}, {}, {}
        return summed(round)

    @property
    def kept_bytes(self) -> int:
        return nbytes(self.omega)


def _positions(round: Round) -> Tensors:
    """D of every target, and the head's rows: all labels."""
    with torch.no_grad():
        found = {name: live_update(adapter) for name, adapter in round.adapters.items()}
        return found | {f"head.{n}": p.detach().clone() for n, p in round.head.items()}
