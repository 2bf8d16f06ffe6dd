"""A uniform sample of everything seen, in fixed memory (Vitter 1985, algorithm R), of encoded inputs.

The i-th sample of the stream takes a free slot while there is one; later it takes slot j, drawn from 0 ... i - 1,
if there is a slot j. After n samples each of them is kept with the same chance K / n.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]


def draw_slots(capacity: int, seen: int, count: int, generator: np.random.Generator) -> dict[int, int]:
    """Which of `count` further samples (0 ... count - 1) is in which slot at the end; seen: how many came before.

    slot -> sample; a slot that keeps what it has is not named.
    """
    slots: dict[int, int] = {}
    for sample in range(count):
        place = seen + sample
        slot = place if place < capacity else int(generator.integers(0, place + 1))
        if slot < capacity:
            slots[slot] = sample
    return slots


@dataclass(frozen=True)
class Kept:
    """K samples as compact arrays: inputs name -> [K, ...]; targets str [K]; seen: of how many."""

    inputs: Arrays
    targets: npt.NDArray[Any]
    seen: int = 0

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def nbytes(self) -> int:
        """Inputs as they are kept, and four bytes for each label."""
        return sum(a.nbytes for a in self.inputs.values()) + 4 * len(self.targets)


def offered(
    kept: Kept | None, new: Kept, capacity: int, generator: np.random.Generator
) -> Kept:
    """The reservoir after all of `new`, in their order, were offered to it."""
    seen = 0 if kept is None else kept.seen
    slots = draw_slots(capacity, seen, len(new), generator)
    if kept is None:
        order = np.array([slots[slot] for slot in sorted(slots)], np.int64)
        return Kept(
            {name: a[order] for name, a in new.inputs.items()}, new.targets[order], len(new)
        )
    size = max(len(kept), 1 + max(slots, default=-1))
    # positions in kept followed by new
    order = np.arange(size, dtype=np.int64)
    for slot, sample in slots.items():
        order[slot] = len(kept) + sample
    inputs = {name: stacked(kept.inputs[name], new.inputs[name])[order] for name in kept.inputs}
    targets = np.concatenate([kept.targets, new.targets])[order]
    return Kept(inputs, targets, seen + len(new))


def stacked(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rows of both; sequences [K, T] of different length are padded with zeros at the end."""
    if one.ndim == 2 and one.shape[1] != other.shape[1]:
        width = max(one.shape[1], other.shape[1])
        one, other = (np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in (one, other))
    return np.concatenate([one, other])
