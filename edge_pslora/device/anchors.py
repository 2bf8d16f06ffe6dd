"""The device's own anchors as a model's inputs, and what a model reaches on them: numpy only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_pslora.core import scores
from edge_pslora.data.types import split_labels
from edge_pslora.errors import WorkspaceError
from edge_pslora.workspace.tensors import open_tensors

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], Array]
BATCH = 32
_INPUT = "input."
_LENGTHS, _TYPES, _PIXELS = "lengths", "token_type_ids", "pixel_values"


@dataclass(frozen=True)
class Anchors:
    """arrays: name -> [K, ...], as a session kept them; targets: K label names or values.

    image: mean and std of the pixels, each of three; None for what are no pictures.
    """

    arrays: Mapping[str, Array]
    targets: Array
    image: tuple[Array, Array] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def usable(self) -> bool:
        """Recordings are not: their way to a model's inputs is not in the file (README, "Limits")."""
        if _LENGTHS in self.arrays and scores.IDS not in self.arrays:
            return False
        pictures = any(array.dtype == np.uint8 for array in self.arrays.values())
        return len(self) > 0 and pictures == (self.image is not None)

    def batches(self) -> Iterator[tuple[npt.NDArray[np.int64], dict[str, Array]]]:
        """Rows and their inputs, texts of about the same length together."""
        lengths = self.arrays.get(_LENGTHS, np.ones(len(self), np.int64))
        order = np.argsort(lengths, kind="stable")
        for first in range(0, len(self), BATCH):
            rows = order[first : first + BATCH]
            yield rows, self._inputs(rows, lengths[rows])

    def _inputs(self, rows: npt.NDArray[np.int64], lengths: Array) -> dict[str, Array]:
        if scores.IDS in self.arrays:
            longest = int(lengths.max(initial=1))
            names = [name for name in (scores.IDS, _TYPES) if name in self.arrays]
            texts = {name: self.arrays[name][rows, :longest].astype(np.int64) for name in names}
            mask = np.arange(longest) < lengths[:, None]
            return {**texts, scores.MASK: mask.astype(np.int64)}
        found = {name: array[rows] for name, array in self.arrays.items()}
        if self.image is not None:
            mean, std = self.image
            pixels = found[_PIXELS].astype(np.float32) / np.float32(255.0)
            found[_PIXELS] = (pixels - mean[:, None, None]) / std[:, None, None]
        return found


def read_anchors(path: Path, source: Mapping[str, Any]) -> Anchors:
    """anchor.safetensors of a generation whose workspace has this model source.

    Raises:
        WorkspaceError: the file is damaged.
    """
    with open_tensors(path) as file:
        arrays = {name: file.read(name) for name in file.names}
        text = file.header.metadata.get("labels", "null")
    inputs = {n.removeprefix(_INPUT): a for n, a in arrays.items() if n.startswith(_INPUT)}
    try:
        labels, targets = json.loads(text), arrays["target"]
        if labels is not None:
            targets = np.array(labels, dtype=np.str_)[targets]
        if not inputs or any(len(array) != len(targets) for array in inputs.values()):
            raise ValueError("no inputs, or not one for each target")
    except (KeyError, IndexError, TypeError, ValueError) as problem:
        raise WorkspaceError(
            str(path),
            expected="inputs and targets of earlier sessions",
            found=str(problem),
            remedy="use the version of edge-pslora that wrote it",
        ) from problem
    options = source.get("options")
    image = options.get("image") if isinstance(options, dict) else None
    return Anchors(inputs, targets, None if image is None else _scaling(image))


def score(
    run: Run, anchors: Anchors, task_type: str, labels: Sequence[str], known: Sequence[str]
) -> list[float]:
    """One score for each anchor, higher is better; ValueError: outputs that are not the task's.

    Args:
        labels: of the model's outputs, in order.
        known: those that compete: a new label must not count as forgetting.
    """
    found = np.zeros(len(anchors), np.float64)
    spread = float(anchors.targets.std()) if task_type == "regression" else 1.0
    for rows, inputs in anchors.batches():
        outputs = run(inputs)
        check_outputs(outputs, len(rows), task_type, labels)
        targets = anchors.targets[rows]
        if task_type == "regression":
            found[rows] = scores.squared_errors(outputs[:, 0], targets, spread or 1.0)
        elif task_type == "language":
            found[rows] = scores.next_tokens(outputs, inputs)[0]
        else:
            columns = [index for index, label in enumerate(labels) if label in set(known)]
            names = [labels[index] for index in columns]
            found[rows] = _labelled(outputs[:, columns], targets, names, task_type)
    return [float(value) for value in found]


def check_outputs(outputs: Array, count: int, task_type: str, labels: Sequence[str]) -> None:
    """ValueError: not one row for each sample, not one column for each label, or not finite."""
    width = 1 if task_type == "regression" else len(labels)
    shape = outputs.shape
    dimensions = 3 if task_type == "language" else 2
    fits = len(shape) == dimensions and shape[0] == count
    if not fits or (task_type != "language" and shape[1] != width):
        wanted = [count, "tokens", "V"] if task_type == "language" else [count, width]
        raise ValueError(f"outputs of shape {list(shape)} instead of {wanted}")
    if not np.isfinite(outputs).all():
        raise ValueError("outputs that are not finite")


def _labelled(outputs: Array, targets: Array, names: list[str], task_type: str) -> Array:
    if task_type == "multilabel":
        wanted = [split_labels(str(target)) for target in targets]
        right = scores.label_hits(wanted, names)
        unknown = np.array([len(labels) for labels in wanted], np.int64) - right.sum(axis=1)
        return scores.f1(outputs > 0, right, unknown)
    return scores.right_labels(outputs, targets, names) if names else np.zeros(len(targets))


def _scaling(image: Mapping[str, Any]) -> tuple[Array, Array]:
    mean, std = (np.asarray(image[name], np.float32).reshape(-1) for name in ("mean", "std"))
    return np.broadcast_to(mean, 3), np.broadcast_to(std, 3)
