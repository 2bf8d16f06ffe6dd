"""The anchor set: a few held-out samples of every session, kept to notice forgetting.

They are never trained on. The set stays under a byte budget whatever the number of sessions: each
session's share shrinks as sessions come. Kept as the model's prepared inputs, in compact dtypes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]

MAX_ANCHORS = 1000  # beyond this the check costs time and tells little more


@dataclass(frozen=True)
class AnchorSet:
    """inputs: name -> [K, ...]; targets: K label names or float32 values; session: int32 [K]."""

    inputs: Arrays
    targets: npt.NDArray[Any]
    session: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.targets)


def sample_bytes(inputs: Arrays) -> int:
    """Bytes of one sample's arrays."""
    return sum(a.dtype.itemsize * int(np.prod(a.shape[1:])) for a in inputs.values())


def grow(
    anchors: AnchorSet | None, new: AnchorSet, budget_bytes: int, seed: int
) -> AnchorSet | None:
    """Adds the candidates of a new session and thins all sessions to equal shares of the budget.

    Deterministic for a seed; which samples of a session survive does not depend on other sessions.
    None: the budget holds no sample at all.
    """
    both = new if anchors is None else _concatenate(anchors, new)
    per_sample = sample_bytes(both.inputs)
    capacity = min(MAX_ANCHORS, budget_bytes // max(per_sample, 1))
    sessions = np.unique(both.session)
    keep: list[npt.NDArray[np.int64]] = []
    for position, session in enumerate(sessions):
        members = np.flatnonzero(both.session == session)
        share = capacity // len(sessions) + (position < capacity % len(sessions))
        if session == new.session[0]:
            # shuffled once, on arrival: later thinning then only cuts the end off
            members = np.random.Generator(np.random.PCG64([seed, int(session)])).permutation(
                members
            )
        keep.append(members[:share])
    chosen = np.concatenate(keep)
    if len(chosen) == 0:
        return None
    return AnchorSet(
        {name: array[chosen] for name, array in both.inputs.items()},
        both.targets[chosen],
        both.session[chosen],
    )


def _concatenate(a: AnchorSet, b: AnchorSet) -> AnchorSet:
    inputs = {name: _stack(a.inputs[name], b.inputs[name]) for name in a.inputs}
    return AnchorSet(
        inputs,
        np.concatenate([a.targets, b.targets]),
        np.concatenate([a.session, b.session]),
    )


def _stack(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rows of both; sequences of different length are padded with zeros at the end."""
    if a.ndim == 2 and a.shape[1] != b.shape[1]:
        width = max(a.shape[1], b.shape[1])
        a, b = (np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in (a, b))
    return np.concatenate([a, b])
