"""A user's own files or folders as a stream: one session each, parted by the product's readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_pslora.compare.stream import Part, Setting, Stream, make_stream
from edge_pslora.data.duplicates import without_duplicates
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.read import read_dataset
from edge_pslora.data.split import split
from edge_pslora.data.types import Dataset, Samples
from edge_pslora.errors import DataError, UsageError
from edge_pslora.models.load import ModelOptions, import_base, load_model

TASKS = ("classification", "language")


@dataclass(frozen=True)
class OwnData:
    """Sessions as they were read, in order, all of one kind; names are unique."""

    names: tuple[str, ...]
    datasets: tuple[Dataset, ...]

    @property
    def task_type(self) -> str:
        return self.datasets[0].train.task_type

    @property
    def rejected(self) -> int:
        return sum(len(data.rejected) for data in self.datasets)

    def facts(self) -> dict[str, Any]:
        return {"data": [data.digest for data in self.datasets]}


def read_own(paths: Sequence[Path], options: ReadOptions) -> OwnData:
    """Each path is one session.

    Raises:
        UsageError: fewer than two, or a kind of task that is not compared.
        DataError: one cannot be read, or is not of the first one's kind.
    """
    if len(paths) < 2:
        raise UsageError(
            "DATA",
            expected="two sessions or more, in the order in which they are learned",
            found=str(len(paths)),
            remedy="name more files or folders",
        )
    datasets: list[Dataset] = []
    for path in paths:
        data = read_dataset(path, options)
        if not options.keep_duplicates:
            data = without_duplicates(data)
        datasets.append(data)
        kind = data.train.task_type
        if kind not in TASKS:
            raise UsageError(
                str(path),
                expected="one class for each sample, or texts to model",
                found=f"a task of {kind}",
                remedy="if these are classes, give --task-type classification",
            )
        if len(datasets) == 1:
            options = replace(options, task_type=kind)
        _require_alike(datasets[0], data, str(path))
    return OwnData(_unique([path.resolve().stem or "data" for path in paths]), tuple(datasets))


def own_stream(
    own: OwnData,
    model: str,
    weights: Path | None,
    options: ModelOptions,
    base: Path,
    holdout: float,
    seed: int,
) -> Stream:
    """The stream with the base model imported from the first session's data, as `adapt` does.

    base: an empty folder. holdout: the share of each class to score on, of data that has no test and no
    valid part.

    Raises:
        ModelError: the model does not fit the data. DataError: a session is too small to be parted.
    """
    parts = [
        _part(name, data, holdout, seed) for name, data in zip(own.names, own.datasets, strict=True)
    ]
    source = import_base(model, weights, parts[0].train, options, base)
    labels = [set(np.unique(np.asarray(part.train.targets)).tolist()) for part in parts]
    same = all(names == labels[0] for names in labels)
    setting: Setting = "domain-incremental" if same else "class-incremental"
    new_model = lambda: load_model(source, base)  # noqa: E731
    return make_stream("own data", setting, parts, new_model, own.rejected)


def _part(name: str, data: Dataset, holdout: float, seed: int) -> Part:
    train, test = data.train, data.test if data.test is not None else data.valid
    if test is None:
        train, test = split(train, holdout, seed)
    if len(train) == 0 or len(test) == 0:
        raise DataError(
            data.source,
            expected="samples to train on and to score on",
            found=f"{len(train)} and {len(test)}",
            remedy="add samples, or raise --holdout",
        )
    return Part(name, train, test)


def _require_alike(first: Dataset, other: Dataset, path: str) -> None:
    kinds = [_kind(data.train) for data in (first, other)]
    if kinds[0] != kinds[1]:
        raise DataError(
            path,
            expected=f"{kinds[0]}, as in {first.source}",
            found=kinds[1],
            remedy="compare sessions of one kind",
        )


def _kind(samples: Samples) -> str:
    if isinstance(samples.inputs, np.ndarray):
        shape = " x ".join(str(size) for size in samples.inputs.shape[1:])
        return f"{samples.modality} data of {shape} numbers a sample"
    return f"{samples.modality} data"


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """Each name once: the second "data" is "data (2)"."""
    found: list[str] = []
    for name in names:
        count = sum(other == name or other.startswith(f"{name} (") for other in found)
        found.append(f"{name} ({count + 1})" if count else name)
    return tuple(found)
