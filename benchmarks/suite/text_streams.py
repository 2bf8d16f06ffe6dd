"""Streams of texts: four tasks and fourteen with MiniLM, two domains with a small language model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.places import CACHE, data_path, minilm_folder
from benchmarks.stream_loaders import base_model
from benchmarks.streams.language import BASE, DOMAINS, STEPS
from benchmarks.streams.tiny_language import make_model
from benchmarks.suite.budget import Draw, part_within
from edge_pslora.compare.stream import Stream, make_stream
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.read import read_dataset
from edge_pslora.errors import DataError
from edge_pslora.models.load import ModelOptions

# orders 1 to 3 of arXiv 2310.14152, with yelp in the place of yahoo, which is not to be had
ORDERS = (
    ("dbpedia", "amazon", "yelp", "agnews"),
    ("dbpedia", "amazon", "agnews", "yelp"),
    ("yelp", "amazon", "agnews", "dbpedia"),
)
# its orders 4 to 6 likewise, without yahoo
LONG_ORDERS = (
    (
        *("mnli", "cb", "wic", "copa", "qqp", "boolqa", "rte", "imdb"),
        *("yelp", "amazon", "sst2", "dbpedia", "agnews", "multirc"),
    ),
    (
        *("multirc", "boolqa", "wic", "mnli", "cb", "copa", "qqp", "rte"),
        *("imdb", "sst2", "dbpedia", "agnews", "yelp", "amazon"),
    ),
    (
        *("yelp", "amazon", "mnli", "cb", "copa", "qqp", "rte", "imdb"),
        *("sst2", "dbpedia", "agnews", "multirc", "boolqa", "wic"),
    ),
)


def four(draw: Draw) -> Stream:
    """Raises UsageError: data or encoder are missing; DataError: they are damaged."""
    return _texts("text4", ORDERS[draw.order], draw)


def fourteen(draw: Draw) -> Stream:
    """Raises UsageError: data or encoder are missing; DataError: they are damaged."""
    return _texts("text14", LONG_ORDERS[draw.order], draw)


def _texts(name: str, tasks: Sequence[str], draw: Draw) -> Stream:
    parts, rejected = [], 0
    for task in tasks:
        data = read_dataset(data_path(f"text/{task}"))
        if data.test is None:
            raise DataError(
                data.source, expected="a test part", found="none", remedy="add a test.jsonl"
            )
        parts.append(part_within(task, data.train, data.test, draw))
        rejected += len(data.rejected)
    options = _options(draw)
    new_model = base_model(str(minilm_folder()), None, parts, options, draw.base)
    return make_stream(name, "class-incremental", parts, new_model, rejected, draw.order, draw.also)


def language(draw: Draw) -> Stream:
    """A language model made on news learns reviews and encyclopaedia; tokens are what is counted.

    Raises:
        UsageError: data are missing. DataError: they are damaged.
    """
    domains = DOMAINS if draw.order == 0 else DOMAINS[::-1]
    options = ReadOptions(task_type="language")
    parts, rejected = [], 0
    for domain in domains:
        data = read_dataset(data_path(f"text/{domain}"), options)
        assert data.test is not None
        parts.append(part_within(domain, data.train, data.test, draw))
        rejected += len(data.rejected)
    new_model = base_model(str(_news_model()), None, parts, _options(draw), draw.base)
    return make_stream("language", "domain-incremental", parts, new_model, rejected, draw.order)


def _options(draw: Draw) -> ModelOptions:
    return ModelOptions(seed=draw.seed, max_length=draw.budget.size or ModelOptions().max_length)


def _news_model(cache: Path = CACHE) -> Path:
    """The base, made once: about a minute. It appears whole or not at all."""
    folder = cache / f"tiny-language-{BASE}-{STEPS}"
    if not folder.is_dir():
        news = read_dataset(data_path(f"text/{BASE}"), ReadOptions(task_type="language")).train
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="making-") as making:
            made = make_model(Path(making) / "model", [str(x) for x in news.inputs], STEPS)
            if not folder.is_dir():  # another run may have been faster
                made.rename(folder)
    return folder
