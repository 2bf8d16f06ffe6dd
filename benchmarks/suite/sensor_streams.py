"""Streams of tables, motion sensors and sound, with the product's built-in networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.places import data_path
from benchmarks.stream_loaders import HOSPITALS, base_model, order_of
from benchmarks.streams import activity as people
from benchmarks.streams import digits as speakers
from benchmarks.streams import gas as sensors
from benchmarks.streams.plan import Cut
from benchmarks.suite.budget import Draw, part_within
from edge_pslora.compare.stream import Part, Stream, make_stream
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.read import read_dataset
from edge_pslora.data.split import split
from edge_pslora.errors import DataError
from edge_pslora.models.load import ModelOptions

TEST_SHARE = 0.3
WINDOWS = ReadOptions(label_column="label", window_seconds=1.0, hop_seconds=0.25, rate_hz=50.0)


def heart(draw: Draw) -> Stream:
    """Heart disease, grades 0 to 4, hospital after hospital.

    Raises:
        UsageError: tables are missing. DataError: they are damaged.
    """
    options = ReadOptions(missing=(-9.0,), task_type="classification")
    orders = (HOSPITALS, HOSPITALS[::-1], (HOSPITALS[1], HOSPITALS[3], HOSPITALS[0], HOSPITALS[2]))
    parts, rejected = [], 0
    for hospital in orders[draw.order]:
        data = read_dataset(data_path(f"tables/heart_processed.{hospital}.data"), options)
        parts.append(part_within(hospital, *split(data.train, TEST_SHARE, draw.seed), draw))
        rejected += len(data.rejected)
    return _built_in("heart", parts, rejected, draw)


def gas(draw: Draw) -> Stream:
    """Ageing gas sensors, batch after batch: time has one order.

    Raises:
        UsageError: tables are missing. DataError: they are damaged.
    """
    plan = sensors.prepare(draw.work, Cut(None, None, None, draw.seed))
    options = ReadOptions(label_column="gas")
    return _from_folders("gas", [(s.name, s.data) for s in plan.sessions], options, draw)


def digits(draw: Draw) -> Stream:
    """Spoken digits, speaker after speaker.

    Raises:
        UsageError: the archive is missing. DataError: it is damaged.
    """
    plan = speakers.prepare(draw.work, Cut(None, None, None, draw.seed))
    named = [(s.name, s.data) for s in plan.sessions]
    return _from_folders("digits", _ordered(named, draw), ReadOptions(), draw)


def activity(draw: Draw) -> Stream:
    """Motion of phone and watch, person after person; the seed draws who they are.

    Raises:
        UsageError: the archive is missing. DataError: it is damaged.
    """
    plan = people.prepare(draw.work, Cut(None, None, None, draw.seed))
    named = []
    for session, test in zip(plan.sessions, plan.tests, strict=True):
        assert session.data.parent == test.data.parent
        named.append((session.name, session.data, test.data))
    chosen = [named[i] for i in order_of(len(named), draw.seed)[: draw.budget.tasks or None]]
    parts, rejected = [], 0
    for name, train, test in chosen:
        read = [read_dataset(folder, WINDOWS) for folder in (train, test)]
        parts.append(part_within(name, read[0].train, read[1].train, draw))
        rejected += sum(len(data.rejected) for data in read)
    return _built_in("activity", parts, rejected, draw)


def _ordered(named: list[tuple[str, Path]], draw: Draw) -> list[tuple[str, Path]]:
    """As the data have it, backwards, or every other one first."""
    return (named, named[::-1], named[1::2] + named[::2])[draw.order]


def _from_folders(
    name: str, folders: Sequence[tuple[str, Path]], options: ReadOptions, draw: Draw
) -> Stream:
    parts, rejected = [], 0
    for task, folder in folders:
        data = read_dataset(folder, options)
        if data.test is None:
            raise DataError(
                data.source, expected="a test part", found="none", remedy="add a test part"
            )
        parts.append(part_within(task, data.train, data.test, draw))
        rejected += len(data.rejected)
    return _built_in(name, parts, rejected, draw)


def _built_in(name: str, parts: Sequence[Part], rejected: int, draw: Draw) -> Stream:
    new_model = base_model("auto", None, parts, ModelOptions(seed=draw.seed), draw.base)
    return make_stream(name, "domain-incremental", parts, new_model, rejected, draw.order)
