"""Training rows that come twice: found by eight-byte digests of input and target."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edge_pslora.data.source import open_input
from edge_pslora.data.spool import rows_at_a_time
from edge_pslora.data.types import Dataset, Samples
from edge_pslora.errors import DataError

_ROWS = 10_000
_CHUNK = 1 << 20


def _hasher(target: object) -> hashlib.blake2b:
    word = str(target).encode("utf-8", "surrogatepass")
    hasher = hashlib.blake2b(len(word).to_bytes(8, "little"), digest_size=8)
    hasher.update(word)
    return hasher


def row_digests(samples: Samples) -> npt.NDArray[np.uint64]:
    """uint64 [N]: equal for equal input and target. Pictures and sounds count with their files' bytes."""
    found = np.empty(len(samples), dtype=np.uint64)
    inputs = samples.inputs
    step = rows_at_a_time(inputs) if isinstance(inputs, np.ndarray) else _ROWS
    for start in range(0, len(samples), step):
        targets = samples.targets[start : start + step].tolist()
        if isinstance(inputs, np.ndarray):
            rows = inputs[start : start + step].reshape(len(targets), -1)
            # one NaN, and one zero
            block = np.where(np.isnan(rows), np.float32("nan"), rows + np.float32(0))
        for place, target in enumerate(targets):
            hasher = _hasher(target)
            if isinstance(inputs, np.ndarray):
                hasher.update(block[place].tobytes())
            else:
                item = inputs[start + place]
                if isinstance(item, str):
                    hasher.update(item.encode("utf-8", "surrogatepass"))
                else:
                    with open_input(item) as stream:
                        while chunk := stream.read(_CHUNK):
                            hasher.update(chunk)
            found[start + place] = int.from_bytes(hasher.digest(), "little")
    return found


def require_different(dataset: Dataset) -> None:
    """Raises DataError: one training row again and again. There is nothing to learn from it, and the
    model would learn nothing else."""
    count = len(dataset.train)
    if count > 1 and len(np.unique(row_digests(dataset.train))) == 1:
        raise DataError(
            dataset.source,
            expected="training samples that differ",
            found=f"{count} times the same",
            remedy="look at what records them",
        )


def without_duplicates(dataset: Dataset) -> Dataset:
    """The data without training rows that equal an earlier one, or one of the valid part, in input and
    target. The same input with another target stays: that is noise to learn from, not a copy.

    Raises:
        DataError: nothing is left to train on; or a picture can no longer be read.
    """
    digests = row_digests(dataset.train)
    _, first = np.unique(digests, return_index=True)
    keep = np.zeros(len(digests), dtype=np.bool_)
    keep[first] = True
    twice = len(digests) - len(first)
    held = 0
    if dataset.valid is not None:
        also_held = np.isin(digests, row_digests(dataset.valid))
        held = int((keep & also_held).sum())
        keep &= ~also_held
    if keep.all():
        return dataset
    if not keep.any():
        raise DataError(
            dataset.source,
            expected="training samples that are not in the valid part too",
            found=f"all {len(digests)} in both",
            remedy="give other samples to check with, or --keep-duplicates",
        )
    notes = []
    if twice:
        notes.append(f"{twice} duplicates left out of the training part")
    if held:
        notes.append(f"{held} training samples left out that are in the valid part too")
    # what was left out follows from the data, but not doing so must be another run
    digest = hashlib.sha256(f"{dataset.digest} without duplicates".encode()).hexdigest()
    train = dataset.train.take(np.flatnonzero(keep).astype(np.int64))
    return replace(dataset, train=train, digest=digest, notes=(*dataset.notes, *notes))
