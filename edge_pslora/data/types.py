"""What the readers hand on: samples in memory (or on disk, for images) with their targets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from edge_pslora.config import TaskType

Modality = Literal["table", "array", "text", "image", "audio"]

_BETWEEN_LABELS = "\x1f"  # a control character, which no label can hold


def join_labels(labels: Iterable[str]) -> str:
    """The set of labels of one multi-label sample as one string, the same in every order."""
    return _BETWEEN_LABELS.join(sorted(set(labels)))


def split_labels(joined: str) -> tuple[str, ...]:
    """The inverse of `join_labels`; "" is a sample without any label."""
    return tuple(joined.split(_BETWEEN_LABELS)) if joined else ()


@dataclass(frozen=True)
class RejectedRow:
    """One row that could not be read: `where` is file:line or a file, `reason` a short sentence."""

    where: str
    reason: str


@dataclass(frozen=True)
class Samples:
    """N samples of one modality.

    inputs: table: float32 [N, F], NaN = missing; array: float32 [N, ...]; text: N strings;
        image, audio: N paths of files known to decode.
    targets: classification: N strings (label names); multilabel: N strings, see `join_labels`;
        language: N empty strings, the text is its own target; regression: float32 [N].
    """

    modality: Modality
    task_type: TaskType
    inputs: npt.NDArray[np.float32] | Sequence[str] | Sequence[Path]
    targets: npt.NDArray[np.str_] | npt.NDArray[np.float32]
    feature_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: npt.NDArray[np.int64]) -> Samples:
        """The samples at `indices` (int64 [K]), in that order."""
        if isinstance(self.inputs, np.ndarray):
            inputs: npt.NDArray[np.float32] | Sequence[str] | Sequence[Path] = self.inputs[indices]
        else:
            inputs = [self.inputs[int(i)] for i in indices]  # type: ignore[assignment]
        return Samples(
            self.modality, self.task_type, inputs, self.targets[indices], self.feature_names
        )


@dataclass(frozen=True)
class Dataset:
    """One DATA argument, read. valid and test are None where the data has no such part.

    notes: what was understood, one sentence each.
    """

    source: str
    train: Samples
    valid: Samples | None = None
    test: Samples | None = None
    rejected: tuple[RejectedRow, ...] = field(default=())
    digest: str = ""  # sha256 over inputs and targets in order, hexadecimal
    notes: tuple[str, ...] = ()
