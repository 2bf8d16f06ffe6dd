"""From raw labels (numbers, names, true/false) to a task type and its targets."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_pslora.config import TaskType
from edge_pslora.data.options import ReadOptions
from edge_pslora.errors import DataError

RawLabel = str | int | float | bool

MAX_LABEL_CHARACTERS = 128
FLOAT32_MAX = float(np.finfo(np.float32).max)
# A table's integer target with this many values, and this share of the rows, is a quantity.
MANY_VALUES = 50
MANY_VALUES_SHARE = 0.20


@dataclass(frozen=True)
class Targets:
    """kept: int64 [K], positions of the labels used, in order; values: [K] names or float32;
    dropped: position and reason of each label of the wrong kind."""

    task_type: TaskType
    kept: npt.NDArray[np.int64]
    values: npt.NDArray[np.str_] | npt.NDArray[np.float32]
    dropped: tuple[tuple[int, str], ...]


def kind_of(label: RawLabel) -> str:
    """'text', 'true/false' or 'number'."""
    if isinstance(label, bool):
        return "true/false"
    return "text" if isinstance(label, str) else "number"


def unprintable(text: str) -> str | None:
    """Why `text` cannot be stored as UTF-8 text, or None. Line breaks and tabs are fine."""
    if "\0" in text:
        return "a NUL character"
    # isascii first: most text is, and it has no surrogates.
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        return "half of a surrogate pair"
    return None


def label_problem(label: RawLabel) -> str | None:
    """Why `label` cannot be used, or None."""
    if isinstance(label, str):
        if not label.strip():
            return "no label"
        if len(label) > MAX_LABEL_CHARACTERS:
            return f"a label of {len(label)} characters (at most {MAX_LABEL_CHARACTERS})"
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in label.strip()):
            return "a control character in the label"
        return None
    if isinstance(label, int):
        return "a label beyond 64 bits" if label.bit_length() > 64 else None
    # NaN fails the comparison as well.
    return None if abs(label) <= FLOAT32_MAX else "a label that is not a finite 32-bit number"


def label_name(label: RawLabel) -> str:
    """The class name: whole numbers as an integer ('2' for 2.0), text without outer spaces."""
    if isinstance(label, str):
        return label.strip()
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label)


def infer_task(numbers: Sequence[int | float], *, table: bool) -> TaskType:
    """Regression for fractional numbers or, in a table, for very many different ones."""
    if any(isinstance(value, float) and not value.is_integer() for value in numbers):
        return "regression"
    distinct = len(set(numbers))
    if table and distinct > MANY_VALUES and distinct > MANY_VALUES_SHARE * len(numbers):
        return "regression"
    return "classification"


def resolve(
    labels: Sequence[RawLabel], options: ReadOptions, where: str, *, table: bool = False
) -> Targets:
    """Decides the task type and turns N labels without `label_problem` into targets.

    In a table (`table`) every cell is text, so that a number among names is a name; elsewhere the
    kind that most labels have wins, and the others are dropped.

    Raises:
        DataError: regression was asked for and the labels are not numbers.
    """
    kinds = [kind_of(label) for label in labels]
    numbers = [label for label in labels if not isinstance(label, str | bool)]
    task: TaskType | None = options.task_type
    if task == "regression":
        wanted: str | None = "number"
        if len(numbers) <= len(labels) / 2:
            odd = next((i for i, kind in enumerate(kinds) if kind != "number"), None)
            raise DataError(
                where,
                expected="numbers as labels for regression",
                found="no label" if odd is None else f"{kinds[odd]} such as {labels[odd]!r}",
                remedy="choose another label column, or --task-type classification",
            )
    elif not table:
        wanted = max(kinds, key=kinds.count) if len(set(kinds)) > 1 else next(iter(kinds), None)
        if task is None:
            task = infer_task(numbers, table=False) if wanted == "number" else "classification"
    else:
        few = len(labels) - len(numbers) <= options.max_bad_fraction * len(labels)
        quantity = task is None and few and infer_task(numbers, table=True) == "regression"
        wanted = "number" if quantity else None
        task = "regression" if quantity else "classification"
    keep = [i for i, kind in enumerate(kinds) if wanted is None or kind == wanted]
    dropped = tuple(
        (i, f"a label of another kind than most ({kind}, not {wanted})")
        for i, kind in enumerate(kinds)
        if wanted is not None and kind != wanted
    )
    values: npt.NDArray[np.str_] | npt.NDArray[np.float32]
    if task == "regression":
        values = np.array([float(labels[i]) for i in keep], dtype=np.float32)
    else:
        values = np.array([label_name(labels[i]) for i in keep], dtype=np.str_)
    return Targets(task, np.array(keep, dtype=np.int64), values, dropped)
