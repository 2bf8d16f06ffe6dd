"""A folder that grows: what earlier sessions learned from is left out of a later one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_pslora.pipeline.memory_files import load_seen
from edge_pslora.workspace.tensors import open_tensors
from edge_pslora.workspace.workspace import Workspace
from tests.pipeline import pipeline_kit as kit

pytestmark = pytest.mark.usefixtures("kept_graphs")


def _data(path: Path, n: int) -> Path:
    """The first n digits of three kinds, in an order that mixes old and new."""
    x, y = kit.digits((0, 1, 2), n)
    order = np.random.default_rng(n).permutation(n)
    return kit.write_npz(path, x[order], y[order])


def test_what_was_learned_from_is_learned_once(run, tmp_path):
    w = tmp_path / "w"
    first = run("adapt", _data(tmp_path / "1.npz", 120), "--model", "auto", "--workspace", w)
    assert first.code == 0
    assert len(load_seen(Workspace.open(w).published(None))) == 120
    grown = _data(tmp_path / "2.npz", 200)
    outcome = run("adapt", grown, "--workspace", w)
    assert outcome.code == 0
    facts = outcome.facts
    assert "120 samples left out that earlier sessions learned from" in " ".join(facts["notes"])
    generation = Workspace.open(w).published(None)
    held = generation.manifest.metrics["holdout_samples"]
    assert facts["samples"] + held == 80
    assert len(load_seen(generation)) == 200
    # the same again under another name: there is nothing new
    again = run("adapt", grown, "--workspace", w, "--task", "again")
    assert again.code == 4
    assert "all 200 known" in str(again.facts)
    assert Workspace.open(w).published(None).number == generation.number
    assert run("adapt", grown, "--workspace", w, "--task", "again", "--plan").code == 4
    # the first session did not know them
    assert run("rollback", w, "--to", "1").code == 0
    back = run("adapt", grown, "--workspace", w, "--task", "back")
    assert back.code == 0
    assert back.facts["samples"] == facts["samples"]


def test_they_are_learned_again_on_request(run, tmp_path):
    w = tmp_path / "w"
    data = _data(tmp_path / "1.npz", 120)
    assert run("adapt", data, "--model", "auto", "--workspace", w).code == 0
    again = run("adapt", data, "--workspace", w, "--task", "again", "--keep-duplicates", "--force")
    assert again.code == 0
    assert not [note for note in again.facts["notes"] if "left out" in note]


def test_where_no_sample_is_kept_no_digest_is(run, tmp_path):
    w = tmp_path / "w"
    data = _data(tmp_path / "1.npz", 120)
    assert run("adapt", data, "--model", "auto", "--workspace", w, "--no-keep-samples").code == 0
    generation = Workspace.open(w).published(None)
    assert not generation.has("anchor.safetensors")
    assert len(load_seen(generation)) == 0


def test_the_digests_lie_beside_the_anchors_and_are_no_input(run, tmp_path):
    w = tmp_path / "w"
    assert (
        run("adapt", _data(tmp_path / "1.npz", 60), "--model", "auto", "--workspace", w).code == 0
    )
    with open_tensors(Workspace.open(w).published(None).file("anchor.safetensors")) as file:
        assert file.read("seen").dtype == np.uint64
        assert file.read("seen").shape == (60,)
