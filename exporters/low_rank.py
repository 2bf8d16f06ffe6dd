"""The best low-rank factors of an update that no single session made. numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_pslora.exporters.lora_factors import Array

TOLERANCE = 1e-3  # of the update's Frobenius norm


@dataclass(frozen=True)
class LowRank:
    """B A is the best approximation at its rank (Eckart and Young, 1936).

    A [r, in], B [out, r]; error: ||D - B A|| / ||D||, Frobenius; 0 for a zero update.
    """

    A: Array
    B: Array
    error: float


def truncate(delta: Array, max_rank: int, tolerance: float = TOLERANCE) -> LowRank:
    """Factors of `delta` [out, in] at the least rank whose error is within `tolerance`.

    The rank is at least 1 and at most `max_rank`; with the latter the error may be larger.
    """
    delta = delta.astype(np.float32, copy=False)
    norm = float(np.linalg.norm(delta.astype(np.float64)))
    if norm == 0.0:
        return LowRank(
            np.zeros((1, delta.shape[1]), np.float32), np.zeros((len(delta), 1), np.float32), 0.0
        )
    left, values, right = np.linalg.svd(delta, full_matrices=False)
    energy = values.astype(np.float64) ** 2
    # tail[r] = what is lost at rank r, summed from the smallest value up
    tail = np.sqrt(np.append(np.cumsum(energy[::-1])[::-1], 0.0)) / norm
    enough = int(np.argmax(tail <= tolerance))
    rank = max(1, min(enough, max_rank))
    root = np.sqrt(values[:rank])
    return LowRank(right[:rank] * root[:, None], left[:, :rank] * root, float(tail[rank]))
