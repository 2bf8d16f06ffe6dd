"""Which samples go into which batch: decided by the seed alone, so that a resumed run sees the same."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

BUCKET_BATCHES = 16  # samples are sorted by length within this many batches, to save padding


def epoch_batches(
    lengths: Indices,
    batch_size: int,
    seed: int,
    session: int,
    epoch: int,
    classes: Indices | None = None,
) -> list[Indices]:
    """One epoch: every sample once, shuffled, batches of similar length.

    lengths: int64 [N]. classes: int64 [N]: N samples are drawn instead, the same number (to one) from
    each class: of a large one some, of a small one all and again from the start. Returns
    ceil(N / batch_size) index arrays. The same arguments give the same batches on every machine (PCG64).
    """
    generator = np.random.Generator(np.random.PCG64([seed, session, epoch]))
    order = generator.permutation(len(lengths)).astype(np.int64)
    if classes is not None:
        order = _balanced(order, classes, generator)
    size = batch_size * BUCKET_BATCHES
    batches: list[Indices] = []
    for start in range(0, len(order), size):
        chunk = order[start : start + size]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    return [batches[int(i)] for i in generator.permutation(len(batches))]


def _balanced(order: Indices, classes: Indices, generator: np.random.Generator) -> Indices:
    """As many samples as `order` has, evenly from the classes; within one in its order."""
    present = np.unique(classes)
    members = [order[classes[order] == name] for name in present]
    # who gets one more where the number is not a multiple: drawn, or it were always the same
    share = np.full(len(present), len(order) // len(present))
    share[generator.permutation(len(present))[: len(order) % len(present)]] += 1
    drawn = [np.resize(own, count) for own, count in zip(members, share, strict=True)]
    return np.concatenate(drawn)[generator.permutation(len(order))]


def sorted_batches(lengths: Indices, batch_size: int) -> list[Indices]:
    """Every sample once, ordered by length: for inference, where the order does not matter."""
    order = np.argsort(lengths, kind="stable").astype(np.int64)
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def spread(count: int, most: int) -> npt.NDArray[np.int64]:
    """At most `most` of `count` positions, evenly spread: samples may lie sorted by label."""
    return np.linspace(0, max(count - 1, 0), min(count, most)).astype(np.int64)
