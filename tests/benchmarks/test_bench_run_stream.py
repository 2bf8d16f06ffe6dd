"""Methods over a small stream: what must hold whatever the figures are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import ArrayInputs, blobs, tiny_model

from benchmarks.figures import Targets, rows_of
from benchmarks.methods import all_methods, choose
from benchmarks.run_stream import StreamRun, run_stream
from edge_pslora.compare.stream import Part, Rows, Stream, concatenate, make_stream
from edge_pslora.data.types import Samples
from edge_pslora.errors import UsageError

DOMAINS = (0.0, 2.0, -2.0)


def _samples(seed: int, shift: float) -> Samples:
    rows, labels = blobs(("a", "b", "c"), n=20, seed=seed, shift=shift)
    return Samples("array", "classification", rows, labels)


def _stream(shifts: tuple[float, ...] = DOMAINS) -> Stream:
    parts = [Part(f"shift {s}", _samples(1, s), _samples(2, s)) for s in shifts]
    return make_stream("blobs", "domain-incremental", parts, tiny_model)


def _run(key: str, stream: Stream | None = None, seed: int = 0) -> StreamRun:
    return run_stream(stream or _stream(), choose([key])[0], seed)


@pytest.mark.parametrize("method", all_methods(), ids=lambda m: m.key)
def test_every_method_gives_accuracies_of_every_session_on_every_task(method) -> None:  # type: ignore[no-untyped-def]
    told = []
    run = run_stream(_stream(), method, 0, lambda name, row: told.append((name, row)))
    assert len(run.matrix) == (1 if method.joint else len(DOMAINS))
    assert all(len(row) == len(DOMAINS) and 0 <= min(row) <= max(row) <= 1 for row in run.matrix)
    assert tuple(row for _, row in told) == run.matrix
    assert run.average == pytest.approx(np.mean(run.matrix[-1]))
    assert (run.backward is None) == method.joint
    assert run.seconds > 0


def test_a_run_leaves_no_trace_for_the_next() -> None:
    stream = _stream()
    first = _run("default", stream)
    _run("sequential", stream)
    assert _run("default", stream).matrix == first.matrix


def test_on_frozen_features_the_analytic_head_does_not_depend_on_the_order_of_tasks() -> None:
    forwards, backwards = _run("frozen"), _run("frozen", _stream(DOMAINS[::-1]))
    assert forwards.matrix[-1] == pytest.approx(backwards.matrix[-1][::-1], abs=0.02)


def test_the_union_holds_the_training_samples_of_all_tasks_and_none_of_the_tests() -> None:
    stream = _stream()
    found = stream.joint.inputs.batch(np.arange(len(stream.joint.targets)))["x"].numpy()
    wanted = concatenate([_samples(1, s) for s in DOMAINS])
    assert np.array_equal(found, wanted.inputs)
    assert np.array_equal(stream.joint.targets, wanted.targets)


def test_rows_are_seen_as_the_whole_has_them() -> None:
    whole = ArrayInputs(np.arange(12, dtype=np.float32).reshape(6, 2))
    chosen = np.array([4, 0, 5], dtype=np.int64)
    rows = Rows(whole, chosen)
    picked = np.array([2, 0], dtype=np.int64)
    assert len(rows) == len(rows.lengths()) == 3
    assert torch.equal(rows.batch(picked)["x"], whole.batch(chosen[picked])["x"])
    assert np.array_equal(rows.to_arrays(picked)["x"], whole.rows[[5, 4]])


def test_methods_are_chosen_by_key_and_by_a_part_of_their_name() -> None:
    assert [m.key for m in choose(["all"])] == [m.key for m in all_methods()]
    assert [m.key for m in choose(["frozen", "default"])] == ["frozen", "default"]
    assert [m.key for m in choose(["all"], "LINEAR")] == ["joint-linear"]
    for keys, only in ((["nothing"], None), (["all"], "nothing")):
        with pytest.raises(UsageError, match="sequential") as caught:
            choose(keys, only)
        assert caught.value.exit_code == 2


def test_rows_average_over_seeds_and_leave_out_what_is_undefined() -> None:
    runs = [
        StreamRun("m", 0, ((0.7, 0.5), (0.6, 0.9)), 0.75, 0.8, -0.1, 0.1, 2.0),
        StreamRun("m", 1, ((0.7, 0.5), (0.8, 0.9)), 0.85, 0.8, 0.1, -0.1, 4.0),
        StreamRun("joint", 0, ((0.9, 0.9),), 0.9, None, None, None, 1.0),
    ]
    rows = {r.figure: r for r in rows_of("m", runs, Targets(0.75, 0.75, -0.2, 0.06))}
    average = rows["m: average accuracy"]
    assert (average.low, average.measured, average.high) == (0.75, pytest.approx(0.8), 0.85)
    assert average.met
    assert rows["m: average accuracy, distance from 0.75"].measured == pytest.approx(0.05)
    assert rows["m: average accuracy, distance from 0.75"].met
    assert rows["m: backward transfer, distance from -0.2"].met is False
    assert len(rows_of("joint", runs)) == 2
