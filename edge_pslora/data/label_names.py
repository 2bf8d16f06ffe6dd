"""labels.json beside a data file: the names of the classes 0, 1, 2, ..."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from edge_pslora.data.label_column import FRACTION, WHOLE, LabelColumn
from edge_pslora.data.labels import label_problem
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.source import open_input, shown
from edge_pslora.errors import DataError

FILE = "labels.json"
_MAX_BYTES = 1 << 20


def label_names(data: Path) -> tuple[str, ...] | None:
    """The names in the labels.json of the folder that holds `data`; None where there is none.

    Raises:
        DataError: it is not a list of different names.
    """
    path = data.parent / FILE
    if not os.path.lexists(path):
        return None
    with open_input(path) as stream:
        content = stream.read(_MAX_BYTES + 1)
    names: object = None
    if len(content) <= _MAX_BYTES:
        try:
            names = json.loads(content.decode("utf-8"))
        except (ValueError, RecursionError):
            names = None
    good = isinstance(names, list) and all(
        isinstance(name, str) and not label_problem(name) for name in names
    )
    stripped = [name.strip() for name in names] if good and isinstance(names, list) else []
    if not stripped or len(set(stripped)) != len(stripped):
        raise DataError(
            shown(path),
            expected='a list of different names, such as ["cat", "dog"]',
            found="something else",
            remedy="correct it, or move it away",
        )
    return tuple(stripped)


def names_for(labels: LabelColumn, options: ReadOptions, data: Path) -> tuple[str, ...] | None:
    """`label_names` where they can mean something: for whole numbers that are classes."""
    kinds = labels.kinds()
    if options.task_type not in (None, "classification") or not len(kinds):
        return None
    whole = np.isin(kinds, (WHOLE, FRACTION)).all() and bool(np.all(labels.numbers() % 1 == 0))
    return label_names(data) if whole else None
