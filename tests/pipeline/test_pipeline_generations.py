"""Between generations: rollback, sessions after it, measuring old ones, refusal by the gate."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edge_pslora import Workspace, adapt, evaluate
from edge_pslora.exporters.export import export_generation
from edge_pslora.exporters.export_options import ExportOptions
from tests.pipeline import pipeline_kit as kit

pytestmark = pytest.mark.usefixtures("kept_graphs")  # it is not about tracing


def test_rollback_restores_byte_for_byte(workspace, run, tmp_path):
    """Forward and back: the pointer, and with it every file that is served."""
    before = kit.snapshot(workspace)
    data = kit.digits_npz(tmp_path / "3.npz", (7, 8))
    assert run("adapt", data, "--workspace", workspace).facts["generation"] == 3
    back = run("rollback", workspace)
    assert (back.code, back.facts["generation"]) == (0, 2)
    after = kit.snapshot(workspace)
    assert {name: after[name] for name in before} == before
    assert run("rollback", workspace, "--to", 3).facts["generation"] == 3
    assert run("rollback", workspace, "--to", 1).facts["generation"] == 1
    assert run("rollback", workspace).code == 2  # nothing lies before the first
    assert Workspace.open(workspace).generations() == (1, 2, 3)


def test_a_session_after_rollback_goes_on_from_there(workspace, run, tmp_path):
    run("rollback", workspace)
    data = kit.digits_npz(tmp_path / "other.npz", (8, 9))
    done = run("adapt", data, "--workspace", workspace)
    assert (done.code, done.facts["generation"]) == (0, 3)
    opened = Workspace.open(workspace)
    assert opened.generation(3).manifest.parent == 1
    assert done.facts["labels"] == ["0", "1", "2", "3", "8", "9"]
    assert done.facts["tasks"] == ["1", "other"]
    assert done.facts["sessions"] == 2
    assert len(done.facts["accuracy_by_task"]) == 2
    assert run("rollback", workspace).facts["generation"] == 1
    assert run("rollback", workspace, "--to", 2).code == 0


def test_old_generations_may_be_deleted(workspace, run, tmp_path):
    """To save space: what serves, and what comes next, does not need them."""
    shutil.rmtree(workspace / "generations" / "000001")
    data = kit.digits_npz(tmp_path / "3.npz", (7, 8))
    done = run("adapt", data, "--workspace", workspace)
    assert (done.code, done.facts["generation"]) == (0, 3)
    assert run("status", workspace, "--verify").code == 0


def test_an_old_generation_can_be_measured_and_exported(workspace, tmp_path):
    test = kit.digits_npz(tmp_path / "test.npz", (0, 1, 2, 3), part="test")
    old = evaluate(workspace, test, generation=1, compare_torch=True)
    assert (old.generation, old.agreement) == (1, 1.0)
    assert old.accuracy > 0.9
    assert evaluate(workspace, test).generation == 2
    result = export_generation(workspace, tmp_path / "out", ExportOptions("onnx"), generation=1)
    assert result.generation == 1
    published = workspace / "generations" / "000001" / "model.onnx"
    assert (tmp_path / "out" / "model.onnx").read_bytes() == published.read_bytes()


HARD = ("--epochs", 12, "--learning-rate", "2e-3")  # what is wrong is also learned well


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace that knows the digits 0 to 3 and has 150 anchors to notice harm with."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "data").mkdir()
    kit.digits_npz(folder / "data" / "train.npz", range(4))
    kit.digits_npz(folder / "data" / "valid.npz", range(4), 150, part="test")
    assert adapt(folder / "data", model="auto", workspace=folder / "w").promoted
    return folder / "w"


def _spoiled(path: Path, how: str) -> Path:
    """Known digits whose labels are wrong."""
    x, y = kit.digits(range(4), 300)
    y = np.random.default_rng(0).permutation(y) if how == "shuffled" else (y + 1) % 4
    return kit.write_npz(path, x.reshape(len(x), -1), y)


@pytest.mark.parametrize("how", ["shuffled", "flipped"])
def test_wrong_labels_are_refused(watched, run, tmp_path, how):
    workspace = Path(shutil.copytree(watched, tmp_path / "w"))
    before = kit.snapshot(workspace)
    done = run("adapt", _spoiled(tmp_path / "bad.npz", how), "--workspace", workspace, *HARD)
    assert done.code == 3, done
    assert done.facts["promoted"] is False
    assert done.facts["generation"] == 1
    assert "anchor" in done.facts["reason"]
    assert done.facts.keys() >= kit.JSON_KEYS
    after = kit.snapshot(workspace)
    assert {name: after[name] for name in before} == before
    added = {name for name in after.keys() - before.keys() if after[name] != "folder"}
    assert all(name.startswith("staging/refused/") for name in added)
    assert {"staging/refused/report.html", "staging/refused/model.onnx"} <= added
    status = run("status", workspace, "--verify")
    assert (status.code, status.facts["generation"]) == (0, 1)
    assert any("refused" in line for line in status.facts["warnings"])
    if how == "shuffled":
        # the next good session is not held up by it
        good = kit.digits_npz(tmp_path / "good.npz", (7, 8))
        done = run("adapt", good, "--workspace", workspace)
        assert (done.code, done.facts["generation"]) == (0, 2)
        assert not (workspace / "staging" / "refused").exists()
    else:
        done = run("adapt", tmp_path / "bad.npz", "--workspace", workspace, *HARD, "--force")
        assert (done.code, done.facts["generation"]) == (0, 2)
        assert done.facts["reason"].startswith("forced although")


def test_a_first_session_that_learns_nothing_is_refused(run, tmp_path):
    """An untrained head on data where nine of ten samples are of one class."""
    x, y = kit.digits(range(10), 600)
    names = np.where(y < 9, "common", y.astype(str))
    names[: len(y) // 40] = "rare"
    data = kit.write_npz(tmp_path / "d.npz", x.reshape(len(x), -1), names)
    command = ("adapt", data, "--model", "auto", "--workspace", tmp_path / "w", "--seed", 3)
    done = run(*command, "--head", "linear", "--epochs", 0)
    assert done.code == 3, done.facts["reason"]
    assert "constant answer" in done.facts["reason"]
    assert (done.facts["generation"], done.facts["accuracy_before"]) == (0, None)
    opened = Workspace.open(tmp_path / "w")
    assert (opened.current(), opened.generations()) == (None, ())
    assert run("eval", tmp_path / "w", data).code == 2  # nothing serves
    assert run("status", tmp_path / "w").code == 0
    # the same workspace goes on with better settings
    done = run(*command)
    assert (done.code, done.facts["generation"]) == (0, 1)
