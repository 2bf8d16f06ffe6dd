"""Streams of pictures with MobileNetV1: PACS by domain, Caltech-101 and CIFAR-10 by classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.places import data_path, model_path, unpack
from benchmarks.stream_loaders import MOBILENET, MOBILENET_WEIGHTS, base_model, order_of
from benchmarks.suite.budget import Draw, part_within
from edge_pslora.compare.stream import Part, Stream, make_stream
from edge_pslora.data.read import read_dataset
from edge_pslora.data.split import split
from edge_pslora.data.types import Samples
from edge_pslora.models.load import ModelOptions
from edge_pslora.models.types import LoadedModel

DOMAIN_ORDERS = (
    ("photo", "art_painting", "cartoon", "sketch"),
    ("sketch", "cartoon", "art_painting", "photo"),
    ("cartoon", "photo", "sketch", "art_painting"),
)
TEST_SHARE = 0.3
CALTECH_TASKS, CIFAR_TASKS = 10, 5


def pacs(draw: Draw) -> Stream:
    """Raises UsageError: archive or weights are missing; DataError: they are damaged."""
    root = unpack(data_path("pacs-96.tar")) / "pacs"
    parts, rejected = [], 0
    for domain in DOMAIN_ORDERS[draw.order]:
        data = read_dataset(root / domain)
        parts.append(part_within(domain, *split(data.train, TEST_SHARE, draw.seed), draw))
        rejected += len(data.rejected)
    new_model = _mobilenet(parts, draw)
    return make_stream("pacs", "domain-incremental", parts, new_model, rejected, draw.order)


def caltech(draw: Draw) -> Stream:
    """Raises UsageError: archive or weights are missing; DataError: they are damaged."""
    data = read_dataset(unpack(data_path("caltech101-64.tar")) / "caltech101")
    train, test = split(data.train, TEST_SHARE, draw.seed)
    return _by_classes("caltech101", train, test, CALTECH_TASKS, len(data.rejected), draw)


def cifar10(draw: Draw) -> Stream:
    """Raises UsageError: archive or weights are missing; DataError: they are damaged."""
    root = unpack(data_path("cifar10-jpg.tar.xz")) / "cifar10"
    train, test = read_dataset(root / "train"), read_dataset(root / "test")
    rejected = len(train.rejected) + len(test.rejected)
    return _by_classes("cifar10", train.train, test.train, CIFAR_TASKS, rejected, draw)


def _by_classes(
    name: str, train: Samples, test: Samples, tasks: int, rejected: int, draw: Draw
) -> Stream:
    """Classes in groups, in an order that the seed draws."""
    names = np.unique(train.targets)
    labels = names[order_of(len(names), draw.seed)]
    parts = []
    for number, group in enumerate(np.array_split(labels, tasks), start=1):
        chosen = [_among(samples, group.tolist()) for samples in (train, test)]
        parts.append(part_within(f"classes {number}", *chosen, draw))
    new_model = _mobilenet(parts, draw)
    return make_stream(name, "class-incremental", parts, new_model, rejected, draw.order)


def _among(samples: Samples, labels: Sequence[str]) -> Samples:
    return samples.take(np.flatnonzero(np.isin(samples.targets, labels)).astype(np.int64))


def _mobilenet(parts: Sequence[Part], draw: Draw) -> Callable[[], LoadedModel]:
    options = ModelOptions(seed=draw.seed, image_size=draw.budget.size or None)
    return base_model(MOBILENET, model_path(MOBILENET_WEIGHTS), parts, options, draw.base)
