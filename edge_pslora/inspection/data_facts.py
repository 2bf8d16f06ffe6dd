"""A DATA argument, read by the product's own readers and described."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_pslora.data.columns import find_columns, find_delimiter
from edge_pslora.data.folder import PART_SUFFIXES
from edge_pslora.data.lines import check_text
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.read import read_dataset
from edge_pslora.data.source import open_input, shown
from edge_pslora.data.types import Dataset, Samples, split_labels
from edge_pslora.inspection.beginnings import beginning
from edge_pslora.inspection.facts import DataFacts, MediaSample, PartFacts
from edge_pslora.inspection.media import decode_some

FIRST = 5  # rows set aside that are told
TABLES = frozenset((".csv", ".tsv", ".data", ".txt"))
JSON_LINES = frozenset((".jsonl", ".ndjson"))
FITS: Mapping[str, tuple[str, ...]] = {
    "table": ("auto", "package.module:factory", "a .pt2 file"),
    "array": ("auto", "package.module:factory", "a .pt2 file"),
    "text": ("a Hugging Face folder for text", "auto"),
    "image": (
        "a Hugging Face folder for images",
        "package.module:factory",
        "a .pt2 file",
        "auto",
    ),
    "audio": ("a Hugging Face folder for audio", "auto"),
}

LANGUAGE_FITS = ("the Hugging Face folder of a causal language model",)

# what a folder without a file for the training part is
FOLDERS: Mapping[str, str] = {
    "image": "class folders (image)",
    "audio": "class folders (audio)",
    "text": "a folder of texts",
    "table": "a folder of tables",
    "array": "a folder of recordings",
}


def inspect_data(path: Path, options: ReadOptions) -> DataFacts:
    """Reads DATA, or the beginning of it where it is large; of pictures, a few are decoded.

    Raises:
        DataError: the data cannot be used, as `adapt` would say it.
        InputError: pictures without Pillow.
    """
    with beginning(path) as part:
        data = read_dataset(part.path, replace(options, decode=False))
        file = _training_file(part.path)
        label, text = _columns(file, data, options)
        suffix = None if file is None else file.suffix.casefold()
        train = data.train
        table = train.modality == "table"
        return DataFacts(
            source=shown(path),
            format=FOLDERS[train.modality] if suffix is None else suffix,
            modality=train.modality,
            task_type=train.task_type,
            parts=_parts(data),
            label=label,
            text=text,
            features=train.feature_names,
            shape=train.inputs.shape[1:] if isinstance(train.inputs, np.ndarray) else (),
            missing=_missing(train) if table else {},
            constant=_constant(train) if table else (),
            target_range=_range(train),
            rejected=len(data.rejected),
            rejected_first=tuple((row.where, row.reason) for row in data.rejected[:FIRST]),
            bytes=part.bytes,
            bytes_read=part.bytes_read,
            sample=_sample(data, options),
            fits=LANGUAGE_FITS if train.task_type == "language" else FITS[train.modality],
            notes=data.notes,
        )


def _parts(data: Dataset) -> dict[str, PartFacts]:
    parts = {"train": data.train, "valid": data.valid, "test": data.test}
    return {
        name: PartFacts(len(part), _classes(part))
        for name, part in parts.items()
        if part is not None
    }


def _classes(samples: Samples) -> dict[str, int]:
    if samples.task_type == "classification":
        labels: list[str] = samples.targets.tolist()
    elif samples.task_type == "multilabel":
        labels = [label for joined in samples.targets.tolist() for label in split_labels(joined)]
    else:
        return {}
    return dict(sorted(Counter(labels).items(), key=lambda item: (-item[1], item[0])))


def _range(samples: Samples) -> tuple[float, float, float] | None:
    if samples.task_type != "regression":
        return None
    values = samples.targets.astype(np.float64)
    return float(values.min()), float(values.mean()), float(values.max())


def _missing(table: Samples) -> dict[str, int]:
    counts = np.isnan(np.asarray(table.inputs)).sum(axis=0)
    return {_column(table, int(i)): int(counts[i]) for i in np.flatnonzero(counts)}


def _constant(table: Samples) -> tuple[str, ...]:
    """Columns whose known values are all the same, or that have none."""
    values = np.asarray(table.inputs)
    known = ~np.isnan(values)
    least = np.where(known, values, np.inf).min(axis=0)
    greatest = np.where(known, values, -np.inf).max(axis=0)
    return tuple(_column(table, int(i)) for i in np.flatnonzero(least >= greatest))


def _column(table: Samples, index: int) -> str:
    return table.feature_names[index] if table.feature_names else f"column {index}"


def _sample(data: Dataset, options: ReadOptions) -> MediaSample | None:
    modality = data.train.modality
    if modality not in ("image", "audio"):
        return None
    parts = [part for part in (data.train, data.valid, data.test) if part is not None]
    return decode_some(
        [Path(path) for part in parts for path in part.inputs], options, modality=modality
    )


def _training_file(path: Path) -> Path | None:
    """The file that the training part is read from; None for class folders."""
    if not path.is_dir():
        return path
    files = [path / ("train" + suffix) for suffix in PART_SUFFIXES]
    return next((file for file in files if file.is_file()), None)


def _columns(
    file: Path | None, data: Dataset, options: ReadOptions
) -> tuple[str | None, str | None]:
    """What the label and the text are called."""
    if data.train.task_type == "language":
        return None, options.text_column or "text"
    if file is None:
        media = data.train.modality in ("image", "audio")
        return "the name of the folder" if media else options.label_column, None
    suffix = file.suffix.casefold()
    if suffix in JSON_LINES:
        return options.label_column or "label", options.text_column or "text"
    if suffix not in TABLES:
        return "y" if suffix == ".npz" else options.label_column, options.text_column
    columns = find_columns(_first_row(file, options), options, shown(file))
    text = None if columns.text is None else columns.names[columns.text]
    label = None if columns.label is None else columns.names[columns.label]
    return label, text


def _first_row(file: Path, options: ReadOptions) -> Sequence[str]:
    with open_input(file) as stream:
        head = check_text(file, stream, options.max_bytes)
    lines = head.decode("utf-8", "replace").splitlines()
    reader = csv.reader(lines, delimiter=find_delimiter(head), skipinitialspace=True)
    rows = ([cell.strip() for cell in row] for row in reader)
    return next((row for row in rows if any(row)), [])
