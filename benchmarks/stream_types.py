"""A stream of tasks whose samples are encoded once and looked at through index sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch

from edge_pslora.data.types import Samples
from edge_pslora.models.types import EncodedInputs, LoadedModel
from edge_pslora.training.session import SessionData

Setting = Literal["domain-incremental", "class-incremental"]


@dataclass(frozen=True)
class Part:
    """One task before encoding: what to train on, and what to measure with."""

    name: str
    train: Samples
    test: Samples


@dataclass(frozen=True)
class Task:
    name: str
    train: SessionData
    test: SessionData


@dataclass(frozen=True)
class Stream:
    """Tasks in order; `joint` is the union of their training samples.

    new_model: the base model, loaded anew, since a run changes its weights.
    rejected: rows of the files that could not be read.
    """

    name: str
    setting: Setting
    tasks: tuple[Task, ...]
    joint: SessionData
    new_model: Callable[[], LoadedModel]
    rejected: int = 0


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
) -> Stream:
    """Encodes all samples once, with the model's own encoder."""
    pieces = [samples for part in parts for samples in (part.train, part.test)]
    everything = concatenate(pieces)
    encoded = new_model().encoder.encode(everything)
    ends = np.cumsum([0, *(len(samples) for samples in pieces)])
    rows = [np.arange(a, b, dtype=np.int64) for a, b in pairwise(ends)]

    def view(chosen: npt.NDArray[np.int64]) -> SessionData:
        return SessionData(Rows(encoded, chosen), everything.targets[chosen])

    tasks = tuple(
        Task(part.name, view(rows[2 * i]), view(rows[2 * i + 1])) for i, part in enumerate(parts)
    )
    return Stream(name, setting, tasks, view(np.concatenate(rows[::2])), new_model, rejected)
