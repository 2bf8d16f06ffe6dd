"""What does not fit is refused before anything is written: each command that writes much."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_pslora.exporters.export import export_generation
from edge_pslora.exporters.export_options import ExportOptions
from edge_pslora.pipeline import run as pipeline_run
from tests.pipeline import pipeline_kit as kit
from tests.workspace import merge_kit

pytestmark = pytest.mark.usefixtures("kept_graphs")  # it is not about tracing


@pytest.fixture
def full(monkeypatch):
    """Every file system says that it has 4 kB left, though it has more: who asks is refused."""
    real = os.statvfs

    def statvfs(path):
        found = list(real(path))
        found[4] = 4096 // found[1] or 1  # f_bavail, in blocks of f_frsize
        return os.statvfs_result(found)

    return lambda: monkeypatch.setattr(os, "statvfs", statvfs)


def refused(run, root: Path, *arguments: object) -> None:
    before = kit.snapshot(root)
    outcome = run(*arguments)
    assert outcome.code == 1
    assert "bytes free" in str(outcome.facts["message"])
    assert kit.snapshot(root) == before


def test_every_command_that_writes_much(workspace, run, tmp_path, full, monkeypatch):
    more = kit.digits_npz(tmp_path / "more.npz", (7, 8), 60)
    base = tmp_path / "base.safetensors"
    merge_kit.make_base(base)
    adapter = merge_kit.make_adapter(tmp_path / "adapter", merge_kit.factors(0))
    export_generation(workspace, tmp_path / "onnx", ExportOptions("onnx"), generation=1)
    export_generation(workspace, tmp_path / "delta", ExportOptions("delta"))
    deployed = tmp_path / "onnx" / "model.onnx"
    parent = workspace / "generations" / "000001"

    def trained(*arguments, **options):
        raise AssertionError("it trained although the result does not fit")

    monkeypatch.setattr(pipeline_run, "run_session", trained)
    full()
    refused(run, tmp_path, "adapt", more, "--workspace", workspace)
    for form in ("onnx", "safetensors", "peft", "delta"):
        refused(run, tmp_path, "export", workspace, tmp_path / "out", "--format", form)
    refused(run, tmp_path, "export", workspace, "--patch", deployed)
    refused(run, tmp_path, "merge", adapter, "--base", base, "--out", tmp_path / "merged")
    replay = ("replay", tmp_path / "delta", "--base", workspace / "base", "--parent", parent)
    refused(run, tmp_path, *replay, "--out", tmp_path / "next")


def test_a_model_that_does_not_fit_makes_no_workspace(run, tmp_path, full):
    data = kit.digits_npz(tmp_path / "d.npz", (0, 1), 60)
    model = tmp_path / "net.pt2"
    model.write_bytes(bytes(10_000))
    full()
    refused(run, tmp_path, "adapt", data, "--model", model, "--workspace", tmp_path / "new")
