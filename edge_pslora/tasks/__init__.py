"""The kinds of task: TASKS[task_type] says how each is trained, scored and summed up."""

from __future__ import annotations

from collections.abc import Mapping

from edge_pslora.config import TaskType
from edge_pslora.tasks.classification import CLASSIFICATION
from edge_pslora.tasks.language import LANGUAGE
from edge_pslora.tasks.multilabel import MULTILABEL
from edge_pslora.tasks.regression import REGRESSION
from edge_pslora.tasks.types import Task

__all__ = ["TASKS", "Task"]

TASKS: Mapping[TaskType, Task] = {
    "classification": CLASSIFICATION,
    "regression": REGRESSION,
    "multilabel": MULTILABEL,
    "language": LANGUAGE,
}
