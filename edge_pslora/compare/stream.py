"""A stream of tasks whose samples are encoded once and looked at through index sets.

What the settings mean: in a task-incremental stream only the task's own labels compete at test time; in a
class-incremental one all labels that the model knows; in a domain-incremental one the labels are the
same in every task, and which task a sample is of is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch

from edge_pslora.config import TaskType
from edge_pslora.data.types import Samples
from edge_pslora.models.types import EncodedInputs, LoadedModel
from edge_pslora.tasks import TASKS
from edge_pslora.training.session import SessionData

Setting = Literal["task-incremental", "class-incremental", "domain-incremental"]


@dataclass(frozen=True)
class Part:
    """One task before encoding: what to train on, what to measure with, and what to choose by."""

    name: str
    train: Samples
    test: Samples
    valid: Samples | None = None


@dataclass(frozen=True)
class Task:
    """labels: of the training part, sorted; those that compete where the task is known."""

    name: str
    train: SessionData
    test: SessionData
    valid: SessionData | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stream:
    """Tasks in order; `joint` is the union of their training samples.

    also: further settings that the same run is scored in.
    new_model: the base model, loaded anew, since a run changes its weights.
    rejected: rows of the files that could not be read. order: which of its orders this is, from 0.
    """

    name: str
    setting: Setting
    tasks: tuple[Task, ...]
    joint: SessionData
    new_model: Callable[[], LoadedModel]
    rejected: int = 0
    task_type: TaskType = "classification"
    order: int = 0
    also: tuple[Setting, ...] = ()


@dataclass(frozen=True)
class Rows:
    """Some rows (int64 [K]) of encoded inputs, as encoded inputs of K samples."""

    whole: EncodedInputs
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
        return self.whole.batch(self.rows[indices])

    def lengths(self) -> npt.NDArray[np.int64]:
        return self.whole.lengths()[self.rows]

    def to_arrays(self, indices: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        return self.whole.to_arrays(self.rows[indices])


def concatenate(parts: Sequence[Samples]) -> Samples:
    """All samples one after the other; they have the same modality, columns and task type."""
    first = parts[0]
    arrays = [p.inputs for p in parts if isinstance(p.inputs, np.ndarray)]
    inputs: Any = np.concatenate(arrays) if arrays else [x for p in parts for x in p.inputs]
    targets = np.concatenate([cast(npt.NDArray[Any], p.targets) for p in parts])
    return Samples(first.modality, first.task_type, inputs, targets, first.feature_names)


def make_stream(
    name: str,
    setting: Setting,
    parts: Sequence[Part],
    new_model: Callable[[], LoadedModel],
    rejected: int = 0,
    order: int = 0,
    also: tuple[Setting, ...] = (),
) -> Stream:
    """Encodes all samples once, with the model's own encoder."""
    pieces = [s for part in parts for s in (part.train, part.test, part.valid) if s is not None]
    everything = concatenate(pieces)
    encoded = new_model().encoder.encode(everything)
    ends = np.cumsum([0, *(len(samples) for samples in pieces)])
    rows = iter(np.arange(a, b, dtype=np.int64) for a, b in pairwise(ends))
    labels_in = TASKS[everything.task_type].labels_in

    def view(chosen: npt.NDArray[np.int64]) -> SessionData:
        return SessionData(Rows(encoded, chosen), everything.targets[chosen])

    tasks, trained = [], []
    for part in parts:
        trained.append(next(rows))
        test = view(next(rows))
        valid = None if part.valid is None else view(next(rows))
        labels = tuple(sorted(labels_in(np.asarray(part.train.targets))))
        tasks.append(Task(part.name, view(trained[-1]), test, valid, labels))
    joint = view(np.concatenate(trained))
    kind = everything.task_type
    return Stream(name, setting, tuple(tasks), joint, new_model, rejected, kind, order, also)
