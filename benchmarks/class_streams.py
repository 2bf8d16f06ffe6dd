"""Streams of pictures whose classes come one group after the other, MobileNetV1 at 64 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.places import CACHE, data_path, model_path, unpack
from benchmarks.stream_loaders import (
    MOBILENET,
    MOBILENET_WEIGHTS,
    base_model,
    order_of,
    part_of,
    some,
)
from edge_pslora.compare.stream import Stream, make_stream
from edge_pslora.data.read import read_dataset
from edge_pslora.data.split import split
from edge_pslora.data.types import Samples
from edge_pslora.models.load import ModelOptions

IMAGE_SIZE = 64
CALTECH_TASKS, CALTECH_TEST_SHARE = 10, 0.3
CIFAR_TASKS, CIFAR_TRAIN, CIFAR_TEST = 5, 500, 100  # the latter two: pictures of each class


def caltech(seed: int, base: Path, limit: int | None = None, *, cache: Path = CACHE) -> Stream:
    """Caltech-101: ten groups of ten classes (one has eleven), 31 to 800 pictures a class; three
    tenths of each class are the test pictures.

    Raises:
        UsageError: archive or weights are missing. DataError: they are damaged.
    """
    data = read_dataset(unpack(data_path("caltech101-64.tar"), cache) / "caltech101")
    train, test = split(data.train, CALTECH_TEST_SHARE, seed)
    return _grouped(
        "Caltech-101", train, test, CALTECH_TASKS, seed, base, limit, len(data.rejected)
    )


def cifar10(seed: int, base: Path, limit: int | None = None, *, cache: Path = CACHE) -> Stream:
    """CIFAR-10: five groups of two classes, 500 training and 100 test pictures a class.

    Raises:
        UsageError: archive or weights are missing. DataError: they are damaged.
    """
    root = unpack(data_path("cifar10-jpg.tar.xz"), cache) / "cifar10"
    train, test = read_dataset(root / "train"), read_dataset(root / "test")
    return _grouped(
        "CIFAR-10",
        _of_each_class(train.train, CIFAR_TRAIN, seed),
        _of_each_class(test.train, CIFAR_TEST, seed),
        CIFAR_TASKS,
        seed,
        base,
        limit,
        len(train.rejected) + len(test.rejected),
    )


def _of_each_class(samples: Samples, count: int, seed: int) -> Samples:
    order = order_of(len(samples), seed)
    names = samples.targets[order]
    kept = [order[names == name][:count] for name in np.unique(names)]
    return samples.take(np.sort(np.concatenate(kept)).astype(np.int64))


def _grouped(
    name: str,
    train: Samples,
    test: Samples,
    tasks: int,
    seed: int,
    base: Path,
    limit: int | None,
    rejected: int,
) -> Stream:
    """Classes in an order drawn by the seed, in groups; limit: most samples of a part."""
    labels = np.unique(train.targets)[order_of(len(np.unique(train.targets)), seed)]
    parts = []
    for number, group in enumerate(np.array_split(labels, tasks)):
        chosen = [_among(samples, group.tolist()) for samples in (train, test)]
        cut = [some(samples, seed, limit or len(samples)) for samples in chosen]
        parts.append(part_of(f"classes {number + 1}", cut[0], cut[1]))
    options = ModelOptions(seed=seed, image_size=IMAGE_SIZE)
    new_model = base_model(MOBILENET, model_path(MOBILENET_WEIGHTS), parts, options, base)
    return make_stream(name, "class-incremental", parts, new_model, rejected)


def _among(samples: Samples, labels: Sequence[str]) -> Samples:
    return samples.take(np.flatnonzero(np.isin(samples.targets, labels)).astype(np.int64))
