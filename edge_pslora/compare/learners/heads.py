"""What learners with a head of their own share: an empty one, and its rows for a session's labels."""

from __future__ import annotations

import torch

from edge_pslora.compare.method import Setup
from edge_pslora.tasks import TASKS
from edge_pslora.training.head import Head, extend_labels
from edge_pslora.training.session import SessionData


def empty_head(setup: Setup, size: int | None = None) -> Head:
    """No label yet; on features of `size` numbers, by default the model's."""
    columns = setup.model.feature_size if size is None else size
    return Head(setup.task_type, (), torch.zeros(0, columns), torch.zeros(0))


def extended(head: Head, data: SessionData) -> tuple[Head, torch.Tensor]:
    """The head with rows for the session's labels, and its targets as the task encodes them."""
    task = TASKS[head.task_type]
    head = extend_labels(head, tuple(sorted(task.labels_in(data.targets))))
    return head, task.encode(data.targets, head.labels)
