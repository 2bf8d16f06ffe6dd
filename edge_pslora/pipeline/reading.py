"""Reading a session's data as the workspace wants it: as the first session's was, labels of its kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_pslora.data.columns import number
from edge_pslora.data.duplicates import require_different, without_duplicates
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.read import read_dataset
from edge_pslora.data.types import Dataset
from edge_pslora.errors import WorkspaceError
from edge_pslora.workspace import layout
from edge_pslora.workspace.workspace import Workspace

# what the first session's flags say of the data, and every later one would have to say again
KEPT = (
    *("label_column", "text_column", "feature_columns", "ignore_columns", "missing"),
    *("window_seconds", "hop_seconds", "rate_hz", "time_column", "time_unit", "group_column"),
    "passage_characters",
)
READ = "read"  # where they stand among the options of the workspace's source


def kept_options(options: ReadOptions) -> dict[str, Any]:
    """Those of KEPT that are not as they are by default; JSON values."""
    plain = ReadOptions()
    values = {name: getattr(options, name) for name in KEPT}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value != getattr(plain, name)
    }


def as_before(options: ReadOptions, kept: Mapping[str, Any]) -> ReadOptions:
    """The options with what was kept, where they say nothing themselves.

    Raises:
        WorkspaceError: what was kept is no set of options.
    """
    unknown = set(kept) - set(KEPT)
    if unknown:
        raise WorkspaceError(
            layout.WORKSPACE_FILE,
            expected="reading options of this version",
            found=", ".join(sorted(unknown)),
            remedy="use the version that made the workspace",
        )
    plain = ReadOptions()
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in kept.items()
        if getattr(options, name) == getattr(plain, name)
    }
    if options.window_seconds is not None:  # other windows come with their own steps
        values = {n: v for n, v in values.items() if n not in ("hop_seconds", "rate_hz")}
    return replace(options, **values)


def options_for(workspace: Workspace, options: ReadOptions) -> ReadOptions:
    """The options for data that an existing workspace is to learn from or to be measured on."""
    source = workspace.header.source
    kept = (source.get("options") or {}).get(READ) or {}
    task_type = options.task_type or workspace.header.task_type
    return replace(as_before(options, kept), task_type=task_type)


def read_for(data: Path, options: ReadOptions, workspace: Path) -> Dataset:
    """The data, read as the workspace's kind of task, each sample once; a first session needs two
    classes."""
    dataset = _read_for(data, options, workspace)
    if not options.keep_duplicates:
        return without_duplicates(dataset)
    require_different(dataset)
    return dataset


def _read_for(data: Path, options: ReadOptions, workspace: Path) -> Dataset:
    if not Workspace.exists(workspace):
        return read_dataset(data, replace(options, min_classes=max(2, options.min_classes)))
    opened = Workspace.open(workspace)
    dataset = read_dataset(data, options_for(opened, options))
    if options.task_type is None and opened.header.task_type == "classification":
        _require_names(dataset, opened.labels())
    return dataset


def _require_names(dataset: Dataset, known: tuple[str, ...]) -> None:
    """Labels that are new and all numbers, with fractions among them, are measurements: a column
    that was misread would otherwise add a class for each of its values. Numbers after nothing but
    names, or names after numbers, are another column or another coding of the same classes."""
    new = {str(label) for label in np.unique(dataset.train.targets)} - set(known)
    numbers = [number(label) for label in new]
    were_numbers = [number(label) is not None for label in known]
    if new and known and len({*were_numbers, *(n is not None for n in numbers)}) == 2:
        changed = all(were_numbers) and not any(n is not None for n in numbers)
        if changed or (not any(were_numbers) and None not in numbers):
            before, after = ("numbers", "names") if changed else ("names", "numbers")
            raise WorkspaceError(
                dataset.source,
                expected=f"labels that are {before}, as in the earlier sessions",
                found=f"{len(new)} new ones that are {after}, such as {min(new)}",
                remedy="check --label-column; if they are classes of their own, give "
                "--task-type classification",
            )
    if any(isinstance(n, float) and not n.is_integer() for n in numbers) and None not in numbers:
        raise WorkspaceError(
            dataset.source,
            expected="labels of classes, as this workspace was made for",
            found=f"{len(new)} new ones that are numbers with fractions, such as {min(new)}",
            remedy="check --label-column, or use another --workspace; if they are names, "
            "give --task-type classification",
        )
