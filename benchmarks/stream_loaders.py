"""The streams, read and loaded by the product's own readers and loaders (shared data/README.md)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.places import CACHE, EXAMPLES, data_path, minilm_folder, model_path, unpack
from edge_pslora.compare.stream import Part, Stream, make_stream
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.read import read_dataset
from edge_pslora.data.split import split
from edge_pslora.data.types import Dataset, Samples
from edge_pslora.errors import DataError
from edge_pslora.models.load import ModelOptions, import_base, load_model
from edge_pslora.models.types import LoadedModel

PACS_DOMAINS = ("photo", "art_painting", "cartoon", "sketch")
PACS_TEST = 500
MOBILENET = "mobilenet_v1:mobilenet_v1"
MOBILENET_WEIGHTS = "mobilenet_v1_1.0_224/model.safetensors"
TEXT_TASKS = ("dbpedia", "amazon", "agnews", "sst2")
TEXT_TASKS_ALL = (
    *("dbpedia", "amazon", "agnews", "yelp", "imdb", "sst2", "qqp"),
    *("mnli", "rte", "boolqa", "cb", "wic", "copa", "multirc"),
)
TEXT_TRAIN, TEXT_TEST = 1500, 500
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
HEART_TEST_SHARE = 0.3

# seed of the split and of a fitted base; an empty folder for the base; most samples of a part
Loader = Callable[[int, Path, int | None], Stream]


def pacs(seed: int, base: Path, limit: int | None = None, *, cache: Path = CACHE) -> Stream:
    """PACS with MobileNetV1: four domains, seven classes, no domain identity at test time.

    Raises:
        UsageError: archive or weights are missing. DataError: they are damaged.
    """
    weights = model_path(MOBILENET_WEIGHTS)
    root = unpack(data_path("pacs-96.tar"), cache) / "pacs"
    parts, rejected = [], 0
    for domain in PACS_DOMAINS:
        data = read_dataset(root / domain)
        order = order_of(len(data.train), seed)
        held = min(PACS_TEST, limit or PACS_TEST)
        train, test = data.train.take(order[held:][:limit]), data.train.take(order[:held])
        parts.append(part_of(domain, train, test))
        rejected += len(data.rejected)
    new_model = base_model(MOBILENET, weights, parts, ModelOptions(seed=seed), base)
    return make_stream("PACS", "domain-incremental", parts, new_model, rejected)


def text(
    seed: int,
    base: Path,
    limit: int | None = None,
    *,
    tasks: Sequence[str] = TEXT_TASKS,
    train_size: int = TEXT_TRAIN,
    test_size: int = TEXT_TEST,
    max_length: int = ModelOptions().max_length,
) -> Stream:
    """Text tasks with MiniLM-L6; the labels of all tasks so far compete.

    train_size, test_size: most samples of a task. max_length: of a text, in tokens.

    Raises:
        UsageError: data or the encoder's package are missing. DataError: data are damaged.
    """
    folder = minilm_folder()
    parts, rejected = [], 0
    for task in tasks:
        data = read_dataset(data_path(f"text/{task}"))
        train = some(data.train, seed, min(train_size, limit or train_size))
        test = some(_test_of(data), seed, min(test_size, limit or test_size))
        parts.append(part_of(task, train, test))
        rejected += len(data.rejected)
    options = ModelOptions(seed=seed, max_length=max_length)
    new_model = base_model(str(folder), None, parts, options, base)
    return make_stream(f"text, {len(tasks)} tasks", "class-incremental", parts, new_model, rejected)


def heart(seed: int, base: Path, limit: int | None = None) -> Stream:
    """Heart disease (grades 0 to 4) at four hospitals with the built-in network for tables.

    Raises:
        UsageError: the tables are missing. DataError: they are damaged.
    """
    options = ReadOptions(missing=(-9.0,), task_type="classification")
    parts, rejected = [], 0
    for hospital in HOSPITALS:
        data = read_dataset(data_path(f"tables/heart_processed.{hospital}.data"), options)
        train, test = split(data.train, HEART_TEST_SHARE, seed)
        keep = limit or len(data.train)
        parts.append(part_of(hospital, some(train, seed, keep), some(test, seed, keep)))
        rejected += len(data.rejected)
    new_model = base_model("auto", None, parts, ModelOptions(seed=seed), base)
    return make_stream("heart disease", "domain-incremental", parts, new_model, rejected)


def base_model(
    argument: str, weights: Path | None, parts: Sequence[Part], options: ModelOptions, base: Path
) -> Callable[[], LoadedModel]:
    """Imports the base as a first session would, from the first task's data; loads it on each call."""
    with importable(EXAMPLES):
        source = import_base(argument, weights, parts[0].train, options, base)

    def new_model() -> LoadedModel:
        with importable(EXAMPLES):
            return load_model(source, base)

    return new_model


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Modules in the folder can be imported inside the block."""
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def order_of(count: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng(seed).permutation(count).astype(np.int64)


def some(samples: Samples, seed: int, count: int) -> Samples:
    return samples.take(order_of(len(samples), seed)[:count])


def _test_of(data: Dataset) -> Samples:
    if data.test is None:
        raise DataError(
            data.source, expected="a test part", found="none", remedy="add a test.jsonl"
        )
    return data.test


def part_of(name: str, train: Samples, test: Samples) -> Part:
    if len(train) == 0 or len(test) == 0:
        raise DataError(
            name,
            expected="samples to train on and to test with",
            found=f"{len(train)} and {len(test)}",
            remedy="give the whole data set",
        )
    return Part(name, train, test)
