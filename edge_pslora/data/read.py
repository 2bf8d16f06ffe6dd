"""The one way in: a DATA argument becomes a Dataset, or one line that says why not."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np

from edge_pslora.data.digest import dataset_digest
from edge_pslora.data.files import read_file
from edge_pslora.data.folder import read_folder
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.source import file_status, shown
from edge_pslora.data.types import Dataset, Samples
from edge_pslora.errors import DataError

__all__ = ["ReadOptions", "read_dataset"]


def read_dataset(path: Path, options: ReadOptions | None = None) -> Dataset:
    """Reads a file (.npz, .jsonl, .csv, .tsv, .data, .txt) or a folder (parts, or images).

    Rows that cannot be read are returned in Dataset.rejected. The test part is never mixed into the
    others, and valid only where the folder has one.

    Raises:
        DataError: the data cannot be used; nothing was changed.
        InputError: images without Pillow.
    """
    options = options or ReadOptions()
    if stat.S_ISDIR(file_status(path).st_mode):
        parts = read_folder(path, options)
    else:
        parts = {"train": read_file(path, options)}
    samples: dict[str, Samples] = {name: part.samples for name, part in parts.items()}
    _check_classes(samples["train"], options, shown(path))
    train, valid, test = samples["train"], samples.get("valid"), samples.get("test")
    return Dataset(
        source=shown(path),
        train=train,
        valid=valid,
        test=test,
        rejected=tuple(row for part in parts.values() for row in part.rejected),
        digest=dataset_digest(train, valid, test) if options.decode else "",
    )


def _check_classes(train: Samples, options: ReadOptions, where: str) -> None:
    if train.task_type != "classification":
        return
    names = np.unique(train.targets)
    if len(names) < options.min_classes:
        raise DataError(
            where,
            expected=f"at least {options.min_classes} classes",
            found=f"{len(names)}: " + ", ".join(shown(str(name), 40) for name in names),
            remedy="add samples of another class, or check --label-column",
        )
