"""What is worth a note in data that can be used: its task, lonely classes, constant columns."""

from __future__ import annotations

import numpy as np

from edge_pslora.data.label_column import unique_values
from edge_pslora.data.source import shown
from edge_pslora.data.spool import rows_at_a_time
from edge_pslora.data.types import Samples, split_labels

_NAMED = 5


def facts_of(train: Samples) -> tuple[str, ...]:
    """Notes on the training part, one sentence each."""
    return (_task(train), *_lonely(train), *_constant(train))


def _task(train: Samples) -> str:
    rows = f"{len(train)} samples"
    if train.task_type == "regression":
        low, high = float(train.targets.min()), float(train.targets.max())
        return f"regression: {rows}, targets from {low:.6g} to {high:.6g}"
    if train.task_type == "language":
        return f"language: {rows} of text without labels"
    names = unique_values(train.targets)[0].tolist()
    if train.task_type == "multilabel":
        names = sorted({label for joined in names for label in split_labels(joined)})
        return f"multilabel: {rows}, {len(names)} labels ({_some(names)})"
    return f"classification: {rows}, {len(names)} classes ({_some(names)})"


def _some(names: list[str]) -> str:
    listed = ", ".join(shown(name, 30) for name in names[:_NAMED])
    return listed + (f", and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _lonely(train: Samples) -> tuple[str, ...]:
    """Classes of one sample: it is trained on, and nothing can be measured of the class."""
    if train.task_type != "classification":
        return ()
    names, counts = unique_values(train.targets)
    found = [str(name) for name in names[counts == 1]]
    if not found:
        return ()
    what = "a class with" if len(found) == 1 else f"{len(found)} classes with"
    return (f"{what} one sample, which is not held out: {_some(found)}",)


def _constant(train: Samples) -> tuple[str, ...]:
    """Columns of a table, or channels of recordings, that hold the same value in every row."""
    inputs = train.inputs
    if not isinstance(inputs, np.ndarray) or len(inputs) < 2:
        return ()
    if train.modality != "table" and not train.feature_names:
        return ()
    first = inputs[0].reshape(-1, inputs.shape[-1])[0]
    same = np.ones(inputs.shape[-1], dtype=np.bool_)
    step = rows_at_a_time(inputs)
    for start in range(0, len(inputs), step):
        block = inputs[start : start + step].reshape(-1, inputs.shape[-1])
        same &= np.all((block == first) | (np.isnan(block) & np.isnan(first)), axis=0)
        if not same.any():
            return ()
    names = [
        train.feature_names[i] if train.feature_names else str(i) for i in np.flatnonzero(same)
    ]
    what = "a constant column" if len(names) == 1 else f"{len(names)} constant columns"
    return (f"{what} in these data: {_some(names)}",)
