"""Setting a part of the samples aside, class by class."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge_pslora.data.types import Samples
from edge_pslora.errors import UsageError

# Regression has no classes: equal shares of the sorted targets stand in for them.
_QUANTILES = 10


def _strata(samples: Samples) -> list[npt.NDArray[np.int64]]:
    """Index sets int64 [K_i] that partition range(N)."""
    if samples.task_type == "regression":
        order = np.argsort(samples.targets, kind="stable").astype(np.int64)
        return np.array_split(order, max(1, min(_QUANTILES, len(order) // 2)))
    _, classes, counts = np.unique(samples.targets, return_inverse=True, return_counts=True)
    if samples.task_type == "multilabel":
        # sets of labels that come once are held out as one class, or they never would be
        classes = np.where(counts[classes] == 1, len(counts), classes)
    order = np.argsort(classes, kind="stable").astype(np.int64)
    return np.split(order, np.flatnonzero(np.diff(classes[order])) + 1)


def split(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """(rest, held out): about `fraction` of each class is held out, at random but repeatably.

    A class with two or more samples has at least one on each side, a class with one sample keeps it
    in `rest`. Regression targets are stratified by decile. Both parts keep the order of `samples`.
    A fraction of 0 holds nothing out.

    Raises:
        UsageError: fraction outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise UsageError(
            "holdout fraction",
            expected="0 or more and less than 1",
            found=str(fraction),
            remedy="change the option",
        )
    generator = np.random.default_rng(seed)
    held = np.zeros(len(samples), dtype=np.bool_)
    for stratum in _strata(samples):
        if fraction == 0 or len(stratum) < 2:
            continue
        count = min(max(round(len(stratum) * fraction), 1), len(stratum) - 1)
        held[generator.permutation(stratum)[:count]] = True
    return (
        samples.take(np.flatnonzero(~held).astype(np.int64)),
        samples.take(np.flatnonzero(held).astype(np.int64)),
    )
