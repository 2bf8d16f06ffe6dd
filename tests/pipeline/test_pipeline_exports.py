"""`export` of a generation made anew (another opset, any size of picture) and with its weights apart."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edge_pslora import AdaptConfig, TrainConfig, adapt
from edge_pslora.errors import UsageError
from edge_pslora.exporters.export_options import ExportOptions
from edge_pslora.exporters.onnx_graph import StoredAs
from edge_pslora.exporters.run import open_onnx
from edge_pslora.pipeline.exporting import export_with_model
from edge_pslora.pipeline.onnx_writing import PATCHED
from edge_pslora.progress import SilentProgress
from edge_pslora.workspace.workspace import Workspace
from tests.pipeline import pipeline_kit as kit

Run = Callable[..., kit.Outcome]
CONFIG = AdaptConfig(train=TrainConfig(epochs=1))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of the built-in network for pictures."""
    pytest.importorskip("PIL")
    folder = tmp_path_factory.mktemp("pictures")
    data = kit.write_images(folder / "data", (0, 1), 24)
    assert adapt(data, model="auto", workspace=folder / "w", config=CONFIG).promoted
    return folder / "w"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return kit.command_line(capsys)


def exported(run: Run, workspace: Path, out: Path, *options: str) -> dict[str, Any]:
    outcome = run("export", workspace, out, "--format", "onnx", *options, "--json")
    assert outcome.code == 0, outcome
    return outcome.facts


def test_another_opset_is_proven_and_says_what_it_is(
    run: Run, pictures: Path, tmp_path: Path
) -> None:
    facts = exported(run, pictures, tmp_path / "out", "--opset", "21")
    assert facts["opset"] == 21
    assert facts["max_abs_error"] <= 1e-4
    record = json.loads((tmp_path / "out" / "export.json").read_text(encoding="utf-8"))
    assert record["opset"] == 21
    assert record["max_abs_error"] == facts["max_abs_error"]
    model = onnx.load(tmp_path / "out" / "model.onnx")
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 21)]
    opened = Workspace.open(pictures)
    published = onnx.load(opened.published(None).file("model.onnx"))
    metadata = {p.key: p.value for p in model.metadata_props}
    assert metadata == {p.key: p.value for p in published.metadata_props}
    assert json.loads(metadata["pslora.labels"]) == ["digit 0", "digit 1"]
    assert metadata["pslora.base_digest"] == opened.header.base_digest
    assert metadata["pslora.generation"] == "1"
    method = json.loads(metadata["pslora.method"])
    assert method["merge"] == metadata["pslora.merge"] == "constructive"
    assert method["lora"]["rank"] == CONFIG.lora.rank
    assert method["stability"]["weight"] == CONFIG.stability.weight
    layout = json.loads(metadata["pslora.layout"])
    assert {StoredAs(**entry).transform for entry in layout.values()} == {"identity"}


def test_weights_apart_without_torch_have_the_bytes_of_an_export_from_torch(
    run: Run, pictures: Path, tmp_path: Path
) -> None:
    code = (
        "import sys, pathlib\n"
        "from edge_pslora.exporters.export import export_generation\n"
        "from edge_pslora.exporters.export_options import ExportOptions\n"
        "options = ExportOptions('onnx', external_data=True)\n"
        "export_generation(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), options)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(pictures), str(tmp_path / "apart")], check=True, timeout=60
    )
    facts = exported(run, pictures, tmp_path / "made", "--opset", "18", "--external-data")
    assert sorted(Path(f).name for f in facts["files"]) == [
        *("export.json", "labels.json", "model.onnx", "model.onnx_data")
    ]
    for name in ("model.onnx", "model.onnx_data"):
        assert (tmp_path / "apart" / name).read_bytes() == (tmp_path / "made" / name).read_bytes()
    # and the same opset in one file is what was published
    exported(run, pictures, tmp_path / "one", "--opset", "18")
    published = Workspace.open(pictures).published(None).file("model.onnx")
    assert (tmp_path / "one" / "model.onnx").read_bytes() == published.read_bytes()
    pixels = {"pixel_values": np.random.default_rng(0).normal(size=(3, 3, 64, 64))}
    logits = [
        open_onnx(path, threads=1).run(pixels)
        for path in (published, tmp_path / "apart" / "model.onnx")
    ]
    assert np.array_equal(*logits)


def test_a_changed_file_is_not_taken_apart(run: Run, pictures: Path, tmp_path: Path) -> None:
    published = pictures / "generations" / "000001" / "model.onnx"
    before = published.read_bytes()
    position = len(before) - 100  # in a weight
    published.chmod(0o644)
    try:
        published.write_bytes(
            before[:position] + bytes([before[position] ^ 1]) + before[position + 1 :]
        )
        outcome = run("export", pictures, tmp_path / "out", "--format", "onnx", "--external-data")
    finally:
        published.write_bytes(before)
    assert outcome.code == 4
    assert "model.onnx: expected sha256" in outcome.facts["message"]
    assert not list(tmp_path.iterdir())


def test_pictures_of_any_size(run: Run, pictures: Path, tmp_path: Path) -> None:
    facts = exported(run, pictures, tmp_path / "out", "--free-image-size")
    assert "proven at 96 x 49 and 65 x 80 as well" in facts["notes"][1]
    model = onnx.load(tmp_path / "out" / "model.onnx")
    sizes = [
        [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert sizes == [["batch", 3, "height", "width"], ["batch", 2]]
    runner = open_onnx(tmp_path / "out" / "model.onnx", threads=1)
    assert runner.run({"pixel_values": np.zeros((2, 3, 40, 90))}).shape == (2, 2)


class Careful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.one(x))
        if torch.isnan(x).any():
            x = torch.nan_to_num(x)
        y: torch.Tensor = self.two(x)
        return y


@dataclass
class Listening(SilentProgress):
    said: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.said.append(line)


def test_a_traced_generation_says_so_and_has_no_image_size(tmp_path: Path) -> None:
    data = kit.digits_npz(tmp_path / "data.npz", (0, 1), 60)
    heard = Listening()
    result = adapt(data, model=Careful, workspace=tmp_path / "w", config=CONFIG, progress=heard)
    generation = Workspace.open(tmp_path / "w").published(None)
    note = generation.manifest.metrics["notes"][-1]
    assert "torch.export could not take the model" in note
    assert f"in model ({Path(__file__).name}:" in note
    assert note in heard.said
    assert note in result.metrics["notes"]
    page = (generation.path / "report.html").read_text(encoding="utf-8")
    assert "torch.export could not take the model" in page
    path = generation.file("model.onnx")
    assert open_onnx(path, threads=1).metadata["pslora.exporter"].endswith("; tracing")

    out, options = tmp_path / "out", ExportOptions("onnx", opset=19)
    again = export_with_model(tmp_path / "w", out, options, module=Careful)
    assert again.notes[-1] == note
    small = ExportOptions("onnx", opset=19, quantize="int8", max_drop=1)
    assert note in export_with_model(tmp_path / "w", tmp_path / "int8", small, module=Careful).notes
    with pytest.raises(UsageError, match="expected a workspace whose model takes pictures"):
        export_with_model(
            tmp_path / "w",
            tmp_path / "other",
            ExportOptions("onnx", free_image_size=True),
            module=Careful,
        )
    assert not (tmp_path / "other").exists()
    more = kit.digits_npz(tmp_path / "more.npz", (0, 1), 60, part="test")
    second = adapt(more, model=Careful, workspace=tmp_path / "w", config=CONFIG)
    assert second.metrics["onnx_graph"] != PATCHED  # a decision of another run is not taken over
    assert note in second.metrics["notes"]
    with pytest.raises(UsageError, match="--free-image-size: expected no --quantize beside it"):
        ExportOptions("onnx", free_image_size=True, quantize="int8")
