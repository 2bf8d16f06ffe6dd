"""From raw labels (numbers, names, true/false) to a task type and its targets."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_pslora.config import TaskType
from edge_pslora.data.label_column import (
    FRACTION,
    GROUP,
    KIND_NAMES,
    WHOLE,
    LabelColumn,
    RawLabel,
    unique_values,
)
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.spool import take_rows
from edge_pslora.data.types import join_labels
from edge_pslora.errors import DataError

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


def joined_labels(value: object) -> str | None:
    """One multi-label cell (a list of names or numbers, or one of them) as `join_labels` joins it;
    None if it is something else or holds a label that cannot be used."""
    names: list[str] = []
    for item in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(item, str | int | float) or label_problem(item) is not None:
            return None
        names.append(label_name(item))
    return join_labels(names)


def split_cell(cell: str) -> list[str]:
    """The labels in one cell of a table: between ';' or, where there is none, '|'."""
    parts = cell.split(";" if ";" in cell else "|")
    return [part.strip() for part in parts if part.strip()]


def infer_task(numbers: npt.NDArray[np.float64], *, fractions: bool, table: bool) -> TaskType:
    """Regression for fractional numbers or, in a table, for very many different ones."""
    if fractions:
        return "regression"
    distinct = len(unique_values(numbers)[0]) if table else 0
    if distinct > MANY_VALUES and distinct > MANY_VALUES_SHARE * len(numbers):
        return "regression"
    return "classification"


def resolve(
    labels: LabelColumn,
    options: ReadOptions,
    where: str,
    *,
    table: bool = False,
    names: tuple[str, ...] | None = None,
) -> Targets:
    """Decides the task type and turns N labels without `label_problem` into targets.

    In a table (`table`) every cell is text, so that a number among names is a name; elsewhere the
    kind that most labels have wins, and the others are dropped. Multi-label sets come joined.

    names: of the classes 0, 1, ... from a labels.json; used where the labels are such numbers.

    Raises:
        DataError: regression was asked for and the labels are not numbers.
    """
    kinds, values = labels.kinds(), labels.numbers()
    is_number = kinds >= WHOLE
    if options.task_type in ("multilabel", "language"):
        return Targets(options.task_type, np.arange(len(labels)), _names(labels, None, None), ())
    groups = GROUP[kinds]
    counts = np.bincount(groups, minlength=len(KIND_NAMES))
    fractions = bool(np.any(kinds == FRACTION) and np.any(values[kinds == FRACTION] % 1 != 0))
    wanted: str | None
    task: TaskType | None = options.task_type
    if task == "regression":
        wanted = "number"
        if is_number.sum() <= len(labels) / 2:
            odd = np.flatnonzero(~is_number)
            raise DataError(
                where,
                expected="numbers as labels for regression",
                found="no label"
                if not len(odd)
                else f"{KIND_NAMES[groups[odd[0]]]} such as {labels[int(odd[0])]!r}",
                remedy="choose another label column, or --task-type classification",
            )
    elif names is not None and is_number.all() and not fractions:
        task, wanted = "classification", None
    elif not table:
        only = KIND_NAMES[counts.argmax()]
        wanted = only if (counts > 0).sum() > 1 else None
        if task is None:
            numbers = values[is_number]
            task = (
                infer_task(numbers, fractions=fractions, table=False)
                if only == "number"
                else "classification"
            )
    else:
        few = (~is_number).sum() <= options.max_bad_fraction * len(labels)
        quantity = task is None and few
        quantity = quantity and (
            infer_task(values[is_number], fractions=fractions, table=True) == "regression"
        )
        wanted = "number" if quantity else None
        task = "regression" if quantity else "classification"
    bad = np.zeros(len(labels), np.bool_)
    if wanted is not None:
        bad = groups != KIND_NAMES.index(wanted)
    dropped = [
        (int(i), f"a label of another kind than most ({KIND_NAMES[groups[i]]}, not {wanted})")
        for i in np.flatnonzero(bad)
    ]
    use_names = names if is_number.all() and not fractions and task == "classification" else None
    if use_names is not None:
        outside = (values < 0) | (values >= len(use_names))
        dropped += [
            (
                int(i),
                f"a label outside labels.json ({labels[int(i)]}, not 0 to {len(use_names) - 1})",
            )
            for i in np.flatnonzero(outside)
        ]
        bad |= outside
    keep = np.flatnonzero(~bad).astype(np.int64)
    if task == "regression":
        return Targets(task, keep, values[keep].astype(np.float32), tuple(dropped))
    return Targets(task, keep, _names(labels, keep, use_names), tuple(dropped))


def _names(
    labels: LabelColumn, keep: npt.NDArray[np.int64] | None, names: tuple[str, ...] | None
) -> npt.NDArray[np.str_]:
    """The class names of the rows `keep` (None: of all, which are names already)."""
    rows = np.arange(len(labels), dtype=np.int64) if keep is None else keep
    distinct, codes = labels.distinct(rows)
    found = [
        str(label) if keep is None else label_name(label) if names is None else names[int(label)]
        for label in distinct
    ]
    return take_rows(np.array(found, dtype=np.str_), codes)
