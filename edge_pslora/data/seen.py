"""Samples that come again: a folder that grows holds what earlier sessions learned from.

Learned again they would count twice, be left out of the head that is to show how unseen ones fare while
their copies stay in it, and be held out for the gate although the serving model knows them. What is kept
of a sample is eight bytes of a digest of its input and target, of the newest MOST.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edge_pslora.data.duplicates import row_digests
from edge_pslora.data.types import Dataset
from edge_pslora.errors import DataError

MOST = 16_384

Digests = npt.NDArray[np.uint64]


def nothing_seen() -> Digests:
    return np.zeros(0, dtype=np.uint64)


def remembered(seen: Digests, new: Digests) -> Digests:
    """The newest MOST of both, each once; the oldest go first."""
    both = np.concatenate([seen, new])
    # unique keeps the first of equals: from behind, that is the newest
    _, places = np.unique(both[::-1], return_index=True)
    return np.asarray(both[::-1][np.sort(places)[:MOST]][::-1])


def without_seen(dataset: Dataset, seen: Digests) -> Dataset:
    """The data without training samples that earlier sessions learned from. The same input with another
    target stays, and so does a valid part, which nothing learns from.

    Raises:
        DataError: nothing is left; or a picture can no longer be read.
    """
    if len(seen) == 0:
        return dataset
    again = np.isin(row_digests(dataset.train), seen)
    count = int(again.sum())
    if count == 0:
        return dataset
    if count == len(again):
        raise DataError(
            dataset.source,
            expected="samples that no earlier session has learned from",
            found=f"all {count} known",
            remedy="nothing was changed; add samples, or learn these again with --keep-duplicates",
        )
    train = dataset.train.take(np.flatnonzero(~again).astype(np.int64))
    note = f"{count} samples left out that earlier sessions learned from"
    return replace(dataset, train=train, notes=(*dataset.notes, note))
