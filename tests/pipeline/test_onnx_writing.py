"""model.onnx of a later session: the parent's with new weights, and byte for byte what tracing gives."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.export_patch import patch_rows
from benchmarks.export_subjects import Subject
from edge_pslora import Workspace, adapt
from edge_pslora.config import AdaptConfig, TrainConfig
from edge_pslora.exporters.onnx_export import export_onnx
from edge_pslora.exporters.run import open_onnx
from edge_pslora.pipeline import onnx_metadata, onnx_writing
from edge_pslora.pipeline.reopening import reopen
from tests.pipeline import pipeline_kit as kit

CONFIG = AdaptConfig(train=TrainConfig(epochs=1))


def how(workspace, number: int) -> str:
    return str(Workspace.open(workspace).generation(number).manifest.metrics["onnx_graph"])


def test_the_second_session_is_patched_and_equals_a_full_export(two_sessions, tmp_path):
    opened = Workspace.open(two_sessions)
    assert how(two_sessions, 1) == "the first generation"
    assert how(two_sessions, 2) == onnx_writing.PATCHED
    found = reopen(opened, opened.generation(2))
    metadata = found.metadata()
    axes = found.model.dynamic_axes
    export_onnx(found.classifier, found.example(), axes, tmp_path / "model.onnx", metadata=metadata)
    published = opened.generation(2).path / "model.onnx"
    assert (tmp_path / "model.onnx").read_bytes() == published.read_bytes()
    assert json.loads(open_onnx(published).metadata["pslora.labels"]) == [*"0123456"]


def test_a_parent_of_other_versions_is_not_patched(workspace, tmp_path, monkeypatch):
    data = kit.digits_npz(tmp_path / "3.npz", (7, 8), 60)
    monkeypatch.setattr(onnx_metadata, "_exporter", lambda *args: "torch 9.0")
    result = adapt(data, workspace=workspace, config=CONFIG)
    assert "other versions" in result.metrics["onnx_graph"]
    assert open_onnx(result.folder / "model.onnx").metadata["pslora.exporter"] == "torch 9.0"


class Net(nn.Module):
    """Its code may change between two sessions, and its weights do not show it."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64, 32), nn.Linear(32, 16)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.two(self.scale * torch.relu(self.one(x)))
        return features


def test_a_graph_that_is_no_longer_the_models_is_traced_again(tmp_path):
    """The proof against torch finds it, and the file that is published passes that proof."""
    for number, scale in ((1, 1.0), (2, 3.0)):
        torch.manual_seed(0)
        data = kit.digits_npz(tmp_path / f"{number}.npz", (2 * number, 2 * number + 1), 80)
        result = adapt(data, model=Net(scale), workspace=tmp_path / "w", config=CONFIG)
        assert result.metrics["onnx_max_abs_error"] < 1e-4
    assert (
        result.metrics["onnx_graph"] == "the parent's graph does not compute what this model does"
    )
    assert [p.name for p in result.folder.glob("model.onnx*")] == ["model.onnx"]


@pytest.mark.parametrize(
    ("axes", "names", "reason"),
    [
        ({"x": ("batch",)}, ("x",), None),
        ({"x": ("rows",)}, ("x",), "another shape of x"),
        ({"x": ("batch", "length")}, ("x",), "another shape of x"),
        ({"x": ("batch",)}, ("y",), "other inputs"),
    ],
)
def test_inputs_that_would_be_traced_otherwise(two_sessions, axes, names, reason):
    generation = Workspace.open(two_sessions).generation(2)
    with onnx_writing.open_model(generation.path / "model.onnx") as file:
        example = {name: torch.from_numpy(np.zeros((2, 64), np.float32)) for name in names}
        found = onnx_writing._differs(file, example, axes, dict(file.metadata))
    assert found is None if reason is None else reason in str(found)


def test_the_benchmark_measures_patches_beside_full_exports(two_sessions, tmp_path):
    opened = Workspace.open(two_sessions)
    subject = Subject("minilm", two_sessions)
    rows = {
        row.figure: row
        for row in patch_rows(subject, reopen(opened, opened.published()), tmp_path, 1)
    }
    assert rows["minilm: full export"].measured > 0
    for name in ("patch, one file", "patch, external data"):
        assert rows[f"minilm: {name} / full export"].target == 0.01
        assert 0 < rows[f"minilm: {name} / full export"].measured < 1
    # two calls each, the first to warm up: the deployed files are the serving generation's again
    published = opened.published().path / "model.onnx"
    assert (tmp_path / "one" / "model.onnx").read_bytes() == published.read_bytes()
