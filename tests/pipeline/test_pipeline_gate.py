"""What the gate refuses on the whole way, and what a session that cannot be learned from leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_pslora import AdaptConfig, GateConfig, Workspace, adapt
from edge_pslora.training import loop
from tests.pipeline import pipeline_kit as kit

pytestmark = pytest.mark.usefixtures("kept_graphs")  # it is not about tracing


def test_shuffled_labels_are_refused_with_their_figures(workspace: Path, tmp_path: Path, run):
    x, y = kit.digits(range(7), 300)
    y = np.random.default_rng(0).permutation(y)
    data = kit.write_npz(tmp_path / "d.npz", x.reshape(len(x), -1), y)
    before = kit.files_of(workspace, 2)
    done = run("adapt", data, "--workspace", workspace)
    assert (done.code, done.facts["promoted"]) == (3, False)
    assert "labels do not follow from its inputs" in done.facts["reason"]
    assert "contradict what the serving model knows" in done.facts["reason"]
    told = [done.facts[name] for name in ("learned_p", "known_p", "alone_p")]
    assert min(told) > 0.001 > done.facts["contradicted_p"]
    assert Workspace.open(workspace).published(None).number == 2
    assert kit.files_of(workspace, 2) == before
    forced = run("adapt", data, "--workspace", workspace, "--force")
    assert (forced.code, forced.facts["generation"]) == (0, 3)


def test_an_update_beyond_the_cap_is_refused(workspace: Path, tmp_path: Path):
    data = kit.digits_npz(tmp_path / "d.npz", range(7), 80, part="test")
    config = AdaptConfig(gate=GateConfig(max_update=1e-9))
    result = adapt(data, workspace=workspace, config=config)
    assert not result.promoted
    assert "times its weights, more than the 1e-09 allowed" in result.reason


def test_training_that_stays_not_finite_fails_and_changes_nothing(
    workspace: Path, tmp_path: Path, run: Callable[..., kit.Outcome], monkeypatch
):
    monkeypatch.setattr(loop, "is_finite", lambda *arguments: False)
    before = kit.snapshot(workspace / "generations")
    data = kit.digits_npz(tmp_path / "d.npz", range(7), 80, part="test")
    done = run("adapt", data, "--workspace", workspace)
    assert (done.code, done.facts["error"]) == (1, "EdgePsloraError")
    assert "4 steps with a non-finite loss, gradient or weight" in done.facts["message"]
    assert "the old model was kept" in done.facts["message"]
    assert kit.snapshot(workspace / "generations") == before
    assert Workspace.open(workspace).published(None).number == 2


def test_one_row_again_and_again_is_no_session(workspace: Path, tmp_path: Path, run):
    x, y = kit.digits((3,), 1)
    data = kit.write_npz(tmp_path / "d.npz", np.repeat(x.reshape(1, -1), 50, 0), np.repeat(y, 50))
    for option in ((), ("--keep-duplicates",)):
        done = run("adapt", data, "--workspace", workspace, *option)
        assert (done.code, done.facts["error"]) == (4, "DataError")
