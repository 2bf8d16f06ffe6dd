"""Frozen features and an analytic head: only the head's statistics change (METHOD.md, "The head")."""

from __future__ import annotations

from dataclasses import replace

from edge_pslora.compare.method import EVERY, Among, Setup
from edge_pslora.compare.scoring import head_scores
from edge_pslora.compare.trainer import head_bytes
from edge_pslora.errors import UsageError
from edge_pslora.tasks import TASKS
from edge_pslora.training.features import extract_features
from edge_pslora.training.head import extend_labels, refit
from edge_pslora.training.memory import first_memory
from edge_pslora.training.session import SessionData


class FrozenLearner:
    """The baseline that shames most methods: the base's features, the product's ridge head on them."""

    trained = 0

    def __init__(self, setup: Setup) -> None:
        require_head(setup)
        self.model = setup.model
        self.config = replace(setup.config, head=replace(setup.config.head, kind="analytic"))
        self.head = first_memory(setup.model, (), self.config, setup.task_type).head

    def learn(self, data: SessionData) -> None:
        task = TASKS[self.head.task_type]
        head = extend_labels(self.head, tuple(sorted(task.labels_in(data.targets))))
        features = extract_features(self.model.backbone, data.inputs, self.config.train.batch_size)
        wanted = task.encode(data.targets, head.labels)
        self.head = refit(head, features, wanted, self.config.head)

    def score(self, data: SessionData, among: Among = EVERY) -> tuple[float, ...]:
        return head_scores(self.model.backbone, self.head, data, among)

    @property
    def kept_bytes(self) -> int:
        return head_bytes(self.head)


def require_head(setup: Setup) -> None:
    """Refuses a kind of task that has no head of ours.

    Raises:
        UsageError: a language model answers by itself.
    """
    if not TASKS[setup.task_type].has_head:
        raise UsageError(
            "compare",
            expected="a method that trains the model itself",
            found=f"one that is a head on its features, for {setup.task_type}",
            remedy="leave this method out",
        )
