"""What a method is to the comparison: something that learns task after task and can be scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge_pslora.config import AdaptConfig, TaskType
from edge_pslora.models.types import LoadedModel
from edge_pslora.training.session import SessionData

# sets of labels that compete: a task's own where the task is known; None: all that the learner knows
Among = Sequence[Sequence[str] | None]
EVERY: Among = (None,)


@dataclass(frozen=True)
class Setup:
    """What a learner starts from.

    model: the base model, the learner's own: it may change it. config: the budget, the same for all
    methods: epochs, batch, rate, rank, targets, seed, head settings. What a method differs in, it sets.
    """

    model: LoadedModel
    task_type: TaskType
    config: AdaptConfig


class Learner(Protocol):
    """One method on one stream: learns task after task, and answers for all labels so far."""

    def learn(self, data: SessionData) -> None: ...

    def score(self, data: SessionData, among: Among = EVERY) -> tuple[float, ...]:
        """The headline figure in [0, 1], accuracy or token accuracy for language, for each of `among`."""
        ...

    @property
    def kept_bytes(self) -> int:
        """What is kept for later sessions beyond the deployed model and the frozen base."""
        ...

    @property
    def trained(self) -> int:
        """Parameters trained in the last session."""
        ...


@dataclass(frozen=True)
class Method:
    """key: what the command line calls it. paper: its source, with the equation.

    stores_samples: keeps training samples (or their features' labels one by one) between sessions.
    needs_head: only for kinds of task with a head of ours: not for language.
    joint: one session on the union of all tasks' data: an upper bound, not a method of its kind.
    """

    key: str
    name: str
    paper: str
    start: Callable[[Setup], Learner]
    stores_samples: bool = False
    needs_head: bool = False
    joint: bool = False
