"""Limits of memory, history and time: kept, or refused with the least that would do."""

from __future__ import annotations

import re

import pytest

from edge_pslora import AdaptConfig, BudgetConfig, Workspace, adapt
from edge_pslora.errors import BudgetError
from tests.pipeline import pipeline_kit as kit

pytestmark = pytest.mark.usefixtures("kept_graphs")  # it is not about tracing


@pytest.fixture
def data(tmp_path):
    return kit.digits_npz(tmp_path / "d.npz", (7, 8, 9))


def test_a_history_that_cannot_fit(run, data, tmp_path):
    new = ("adapt", data, "--model", "auto", "--workspace", tmp_path / "w")
    done = run(*new, "--history-budget", "100B")
    assert (done.code, done.facts["error"]) == (6, "BudgetError")
    assert "--history-budget" in done.facts["where"]
    assert not (tmp_path / "w").exists()
    # the message names the least that would do, and that much does
    least = max(int(n) for n in re.findall(r"\d+", done.facts["remedy"]))
    assert run(*new, "--history-budget", f"{least - 1}B").code == 6
    done = run(*new, "--history-budget", f"{least}B", "--epochs", 1)
    assert done.code == 0, done
    assert done.facts["history_bytes"] <= least


def test_a_history_that_cannot_fit_later(workspace, run, data):
    before = kit.snapshot(workspace)
    done = run("adapt", data, "--workspace", workspace, "--history-budget", "100B")
    assert done.code == 6
    after = kit.snapshot(workspace)
    assert {name: after[name] for name in before} == before
    assert run("status", workspace, "--verify").code == 0
    done = run("adapt", data, "--workspace", workspace)
    assert (done.code, done.facts["generation"]) == (0, 3)


@pytest.mark.parametrize("first", [True, False])
def test_too_little_memory_changes_nothing(two_sessions, run, data, tmp_path, first):
    if first:
        done = run(
            "adapt", data, "--model", "auto", "--workspace", tmp_path / "w", "--ram-budget", "1MB"
        )
        assert not (tmp_path / "w").exists()
    else:
        before = kit.snapshot(two_sessions)
        done = run("adapt", data, "--workspace", two_sessions, "--ram-budget", "1MB")
        assert kit.snapshot(two_sessions) == before
    assert done.code == 6
    assert "--ram-budget" in done.facts["where"]
    assert "at least" in done.facts["remedy"]


def test_memory_that_runs_out_in_training(workspace, data, monkeypatch):
    """The old generation serves, and the next run is not held up by what was left."""
    import edge_pslora.pipeline.resources as resources

    used = iter([1, 1, 1, 10**12])
    monkeypatch.setattr(resources, "peak_rss_bytes", lambda: next(used))
    # far above what this process has already, which many tests before may have made large
    config = AdaptConfig(budget=BudgetConfig(ram_bytes=10**11))
    before = {number: kit.files_of(workspace, number) for number in (1, 2)}
    with pytest.raises(BudgetError, match="at training"):
        adapt(data, workspace=workspace, config=config)
    opened = Workspace.open(workspace)
    assert opened.current().number == 2
    assert opened.status(verify=True)["damage"] == []
    assert {number: kit.files_of(workspace, number) for number in (1, 2)} == before
    monkeypatch.undo()
    assert adapt(data, workspace=workspace).generation == 3
    assert opened.status()["warnings"] == []


def test_too_little_time_ends_cleanly(workspace, run, data):
    done = run("adapt", data, "--workspace", workspace, "--time-budget", "0.01s", "--epochs", 50)
    assert done.code == 0, done
    assert done.facts["stop_reason"] == "time budget"
    assert done.facts["steps"] == 0
    # no step was taken, and yet the head has learned the new classes
    assert done.facts["accuracy_after"] > 0.5
    assert done.facts["labels"][-3:] == ["7", "8", "9"]
    assert run("status", workspace, "--verify").code == 0


def test_time_that_runs_out_in_training(workspace, run, data):
    done = run("adapt", data, "--workspace", workspace, "--time-budget", "2s", "--epochs", 5000)
    assert done.code == 0, done
    assert done.facts["stop_reason"] == "time budget"
    assert done.facts["steps"] > 0
    # export and checks of a network this small take about two seconds on a slow machine
    assert done.facts["seconds"]["training"] < 2


def test_a_second_writer_is_turned_away(workspace, run, data, tmp_path):
    from edge_pslora.workspace.lock import writer_lock

    with writer_lock(workspace):
        before = kit.snapshot(workspace)
        done = run("adapt", data, "--workspace", workspace)
        assert (done.code, done.facts["error"]) == (5, "WorkspaceLockedError")
        assert run("rollback", workspace).code == 5
        assert run("status", workspace).code == 0  # readers need no lock
        assert run("eval", workspace, data).code == 0
        assert kit.snapshot(workspace) == before
    assert run("rollback", workspace).code == 0
