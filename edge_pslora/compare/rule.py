"""What a LoRA method decides in a session of the one trainer, and what it sees of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from edge_pslora.config import AdaptConfig
from edge_pslora.models.types import LoadedModel
from edge_pslora.tasks import Task
from edge_pslora.training.inject import Adapter
from edge_pslora.training.memory import BaseWeights
from edge_pslora.training.session import SessionData

Matrices = Mapping[str, torch.Tensor]  # target name -> [out, in]
ModelInputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Step:
    """One batch of B samples, as the model now answers it; features and logits carry gradients.

    samples: int64 [B], numbers within the session. wanted: their targets as the task encodes them.
    features [B, d]; logits [B, C] over all labels so far (language: [B, T, V], features are the same).
    task_loss: what the trainer minimises without the rule.
    """

    inputs: ModelInputs
    samples: torch.Tensor
    features: torch.Tensor
    logits: torch.Tensor
    wanted: torch.Tensor
    task_loss: torch.Tensor


@dataclass(frozen=True)
class Round:
    """One session, as a rule sees it. From `begin` to `end` the model computes with W + D.

    session: from 1. data: its samples. wanted: their targets as the task encodes them, first axis N.
    labels: all so far, those of the session included; the first `known` of them are of earlier ones.
    adapters: by target; D = scaling * B A is zero in `begin`. A rule may change or freeze them in place.
    weights: the frozen parameters of the targets, W0 + M_{t-1} unless `start_from` was called;
        `training.targets.as_matrix(weight, adapter.target)` is the matrix. base: W0 by weight name.
    past: M_{t-1} by target, what was deployed so far.
    head: "weight" [C, d] and "bias" [C] where the head is trained by SGD, else empty.
    logits: features [B, d] of samples int64 [B] of the session -> logits [B, C], as training sees them.
    answer: model inputs -> (features, logits), with gradients; also for samples not of the session.
    task_loss: (logits, wanted, model inputs) -> scalar, a mean.
    start_from: W <- W0 + these instead of W0 + M_{t-1}; only in `begin`.
    generator: of what the rule draws.
    """

    session: int
    model: LoadedModel
    task: Task
    data: SessionData
    wanted: torch.Tensor
    labels: tuple[str, ...]
    known: int
    adapters: Mapping[str, Adapter]
    weights: Mapping[str, nn.Parameter]
    base: BaseWeights
    past: Matrices
    head: Mapping[str, nn.Parameter]
    logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    answer: Callable[[ModelInputs], tuple[torch.Tensor, torch.Tensor]]
    task_loss: Callable[[torch.Tensor, torch.Tensor, ModelInputs], torch.Tensor]
    start_from: Callable[[Matrices], None]
    config: AdaptConfig
    generator: torch.Generator


class Rule(Protocol):
    """What a LoRA method decides; all else is the trainer's."""

    def begin(self, round: Round) -> None:
        """Before the first step: adapters are new (B = 0), a linear head has its new rows."""
        ...

    def loss(self, round: Round, step: Step) -> torch.Tensor | None:
        """What is added to the task loss, a scalar with gradients."""
        ...

    def after_step(self, round: Round) -> None:
        """After each step of the optimiser."""
        ...

    def end(self, round: Round) -> dict[str, torch.Tensor]:
        """M_t by target: W0 + M_t is deployed, and the next session starts there. The adapters still
        compute; what the rule needs in the next session it remembers here."""
        ...

    @property
    def kept_bytes(self) -> int:
        """What the rule keeps between sessions."""
        ...


def updates(round: Round) -> dict[str, torch.Tensor]:
    """D_t [out, in] of every target, detached."""
    return {name: adapter.delta() for name, adapter in round.adapters.items()}


def summed(round: Round) -> dict[str, torch.Tensor]:
    """M_t = M_{t-1} + D_t: what training ended with is deployed."""
    return {name: round.past[name] + delta for name, delta in updates(round).items()}


def live_update(adapter: Adapter) -> torch.Tensor:
    """D = s B A [out, in] with its gradient graph."""
    return adapter.scaling * (adapter.B @ adapter.A)


@dataclass(frozen=True)
class PlainRule:
    """A rule of functions, each with a default: no penalty, nothing kept, updates add up."""

    begin: Callable[[Round], None] = lambda round: None
    loss: Callable[[Round, Step], torch.Tensor | None] = lambda round, step: None
    after_step: Callable[[Round], None] = lambda round: None
    end: Callable[[Round], dict[str, torch.Tensor]] = summed
    kept_bytes: int = 0
