"""The suite: which runs there are, that it goes on where it was stopped, and that one that dies is told."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.suite import main as suite
from benchmarks.suite.budget import Budget, Draw, changed, part_within
from benchmarks.suite.pace import Pace
from benchmarks.suite.plan import Group, key_of, keys_done, plan
from benchmarks.suite.processes import Ended
from benchmarks.suite.streams import STREAMS, SuiteStream, quick
from edge_pslora.compare.method import Method, Setup
from edge_pslora.compare.methods import METHODS
from edge_pslora.compare.results import read
from edge_pslora.compare.stream import Stream, make_stream
from edge_pslora.data.types import Samples
from edge_pslora.errors import DataError, UsageError
from tests.tiny import blobs, tiny_model

BUDGET = Budget(24, 6, 12, epochs=1, batch=8)


def _samples(seed: int, shift: float) -> Samples:
    return Samples("array", "classification", *blobs(("a", "b"), n=40, seed=seed, shift=shift))


def _load(draw: Draw) -> Stream:
    if draw.seed == 7:
        raise DataError("here", expected="data", found="none", remedy="look")
    assert draw.base.is_dir()
    assert draw.work.is_dir()
    shifts = (0.0, 2.0) if draw.order == 0 else (2.0, 0.0)
    parts = [part_within(f"by {s:g}", _samples(1, s), _samples(2, s), draw) for s in shifts]
    return make_stream("small", "domain-incremental", parts, tiny_model, 3, draw.order, draw.also)


SMALL = SuiteStream("small", "blobs", _load, BUDGET, orders=2, also=("task-incremental",))


def _dies(setup: Setup) -> object:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setitem(STREAMS, "small", SMALL)
    return tmp_path / "results.jsonl"


def _suite(path: Path, *more: str) -> int:
    return suite.main(["--streams", "small", "--out", str(path), *more])


def test_what_was_run_is_not_run_again(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = ("--methods", "sequential", "frozen")
    assert _suite(small, *some, "--seeds", "2") == 0
    said = capsys.readouterr().out
    assert "4 runs to go in 2 groups" in said
    assert "small seed 0 loaded: 2 tasks of 24 to 24 samples; 3 unreadable rows left out" in said
    assert "domain 1.000, task 1.000" in said
    assert "[4/4]" in said
    first = read(small)
    assert len(first) == 8  # two settings each
    assert {(r.seed, r.order) for r in first} == {(0, 0), (1, 1)}
    assert {r.part for r in first} == {"test"}
    assert all(10_000_000 < r.peak_bytes < 4_000_000_000 for r in first)
    assert _suite(small, *some, "l2sp", "--seeds", "2") == 0
    assert "2 runs to go" in capsys.readouterr().out
    assert read(small)[:8] == first
    assert _suite(small, *some, "l2sp", "--seeds", "2") == 0
    last = capsys.readouterr().out
    assert "0 runs to go in 0 groups" in last
    assert "blobs; domain-incremental, test part" in last
    assert "l2sp: L2-SP" in last
    # another budget, another part: other runs
    assert _suite(small, "--methods", "frozen", "--seeds", "1", "--budget", "train=12") == 0
    assert "1 runs to go" in capsys.readouterr().out
    assert _suite(small, "--methods", "frozen", "--seeds", "1", "--part", "valid") == 0
    assert "1 runs to go" in capsys.readouterr().out


def test_a_run_that_is_killed_is_told_and_takes_nothing_with_it(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(METHODS, "dies", Method("dies", "dies", "", _dies))  # type: ignore[arg-type]
    assert _suite(small, "--methods", "dies", "frozen", "slda", "--seeds", "1") == 1
    said = capsys.readouterr().out
    assert "small seed 0 dies: FAILED: it ended with -9" in said
    assert [r.method for r in read(small)] == ["frozen", "frozen", "slda", "slda"]
    assert _suite(small, "--methods", "dies", "frozen", "--seeds", "1") == 1  # tried again
    assert "1 runs to go" in capsys.readouterr().out


def test_a_stream_that_cannot_be_loaded_is_told(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _suite(small, "--methods", "frozen", "--seeds", "8", "--jobs", "3") == 1
    said = capsys.readouterr().out
    assert "small seed 7 loaded: FAILED: here: expected data; found none; look" in said
    assert len(read(small)) == 14


def test_wrong_use_is_one_line(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, wanted in (
        (("--methods", "nothing"), "found nothing; see them all"),
        (("--budget", "trains=3"), "expected NAME=NUMBER"),
    ):
        assert _suite(small, *arguments) == 2
        error = capsys.readouterr().err
        assert wanted in error
        assert len(error.splitlines()) == 1
    assert not small.exists()


def test_a_task_is_parted_without_overlap(tmp_path: Path) -> None:
    draw = Draw(0, 0, tmp_path, tmp_path, BUDGET)
    part = part_within("t", _samples(1, 0.0), _samples(2, 0.0), draw)
    assert part.valid is not None
    assert (len(part.train), len(part.valid), len(part.test)) == (24, 6, 12)
    rows = [{row.tobytes() for row in np.asarray(p.inputs)} for p in (part.train, part.valid)]
    assert not rows[0] & rows[1]
    again = part_within("t", _samples(1, 0.0), _samples(2, 0.0), replace(draw, seed=1))
    assert {row.tobytes() for row in np.asarray(again.train.inputs)} != rows[0]
    assert (
        part_within(
            "t", _samples(1, 0.0), _samples(2, 0.0), replace(draw, budget=replace(BUDGET, valid=0))
        ).valid
        is None
    )
    with pytest.raises(DataError, match="found 24, 6 and 0"):
        part_within("t", _samples(1, 0.0), _samples(2, 0.0).take(np.zeros(0, np.int64)), draw)


def test_the_plan_goes_seed_after_seed_and_leaves_out_what_does_not_fit() -> None:
    methods = list(METHODS.values())
    streams = list(STREAMS.values())
    groups = plan(streams, methods, 5, "test")
    assert [g.seed for g in groups] == sorted(g.seed for g in groups)
    assert len(groups) == 5 * len(streams)
    by_stream = {g.stream.key: g for g in groups}
    assert not any(m.needs_head for m in by_stream["language"].methods)
    assert len(by_stream["pacs"].methods) == len(METHODS)
    long = by_stream["text14"].methods
    assert {m.key for m in long} == set(STREAMS["text14"].only)  # every one of them exists
    assert {g.order for g in groups if g.stream.key == "text4"} == {0, 1, 2}
    done = {key_of(groups[0], methods[0])}
    assert len(plan(streams, methods, 5, "test", done)[0].methods) == len(groups[0].methods) - 1
    assert keys_done([]) == set()
    with pytest.raises(UsageError, match="NAME=NUMBER"):
        changed(BUDGET, "train=-1")
    assert changed(BUDGET, "train=9,epochs=4") == replace(BUDGET, train=9, epochs=4)
    assert quick(SMALL).budget.train < BUDGET.train


def test_the_pace_is_that_of_runs_of_the_same_kind() -> None:
    group = Group(SMALL, 0, "test", (METHODS["sequential"], METHODS["frozen"], METHODS["ewc"]))
    pace = Pace([group, replace(group, seed=1)], [], 2)
    assert pace.left() == "time left unknown"
    pace.add(Ended("small", 0, "", 3.0, ""))
    assert (pace.done, pace.total) == (0, 6)
    pace.add(Ended("small", 0, "sequential", 10.0, ""))
    pace.add(Ended("small", 0, "frozen", 2.0, ""))
    # ewc twice at 6, sequential 10, frozen 2, by two processes
    assert pace.left() == "about 12s left"
    pace.add(Ended("small", 1, "", 0.0, "", "no data"))
    assert (pace.done, pace.left()) == (5, "about 3.0s left")
