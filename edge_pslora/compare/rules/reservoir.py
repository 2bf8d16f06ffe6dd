"""A uniform sample of everything seen, of encoded inputs: in fixed memory, or a share of it.

Fixed (Vitter 1985, algorithm R): the i-th sample of the stream takes a free slot while there is one;
later it takes slot j, drawn from 0 ... i - 1, if there is a slot j. After n samples each of them is
kept with the same chance K / n. A share: of each session as many as its share, which is the same chance
for all, and no slot is ever taken from a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]


def draw_slots(
    capacity: int, seen: int, count: int, generator: np.random.Generator
) -> dict[int, int]:
    """Which of `count` further samples (0 ... count - 1) is in which slot at the end; seen: how many
    came before.

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


Take = Callable[[npt.NDArray[np.int64]], Kept]  # numbers within the new samples -> those samples


def offered(
    kept: Kept | None, take: Take, count: int, capacity: int, generator: np.random.Generator
) -> Kept:
    """The reservoir of fixed capacity after `count` new samples, in their order, were offered to it."""
    before = 0 if kept is None else len(kept)
    seen = 0 if kept is None else kept.seen
    slots = draw_slots(capacity, seen, count, generator)
    taken = sorted(slots.values())
    order = list(range(before)) + [0] * (min(capacity, seen + count) - before)
    for slot, sample in slots.items():
        order[slot] = before + taken.index(sample)
    return _chosen(kept, take(np.array(taken, np.int64)), np.array(order, np.int64), count)


def shared(kept: Kept | None, take: Take, count: int, share: float) -> Kept:
    """With the first of `count` new samples, which come in a drawn order: the share, at least one."""
    before = 0 if kept is None else len(kept)
    new = take(np.arange(min(count, max(1, round(share * count))), dtype=np.int64))
    return _chosen(kept, new, np.arange(before + len(new), dtype=np.int64), count)


def _chosen(kept: Kept | None, new: Kept, order: npt.NDArray[np.int64], count: int) -> Kept:
    """Those at `order`, positions in kept followed by new; `count` more have been seen."""
    if kept is None:
        inputs = {name: array[order] for name, array in new.inputs.items()}
        return Kept(inputs, new.targets[order], count)
    inputs = {name: stacked(kept.inputs[name], new.inputs[name])[order] for name in kept.inputs}
    targets = np.concatenate([kept.targets, new.targets])[order]
    return Kept(inputs, targets, kept.seen + count)


def stacked(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rows of both; of [K, T] and [K', T'] the shorter is filled up at the end: whole numbers with 0,
    which encoders take for padding, others with NaN."""
    if one.ndim == 2 and one.shape[1] != other.shape[1]:
        width = max(one.shape[1], other.shape[1])
        fill = np.nan if one.dtype.kind == "f" else 0
        one, other = (
            np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=fill) for x in (one, other)
        )
    return np.concatenate([one, other])
