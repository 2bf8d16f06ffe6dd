"""`export --format ort-adapter`: generations with a growing label set in one file, proven and refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_pslora.exporters.adapter_file import open_adapter
from edge_pslora.exporters.run import open_onnx
from edge_pslora.pipeline import ort_adapters
from tests.pipeline import pipeline_kit as kit

Run = Callable[..., kit.Outcome]


def test_two_generations_on_one_session(workspace: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    ask = ("export", workspace, out, "--format", "ort-adapter", "--generations", 2)
    done = run(*ask)
    assert done.code == 0, done.facts
    names = {Path(name).name for name in done.facts["files"]}
    adapters = [f"generation-00000{n}" for n in (1, 2)]
    both = {f"{name}{end}" for name in adapters for end in (".onnx_adapter", ".json")}
    assert names == {"model.onnx", "labels.json", "export.json", *both}
    first, second = done.facts["adapters"]
    assert (first["exact"], first["max_relative_error"]) == (True, 0.0)
    assert first["onnx_max_abs_error"] <= 1e-4
    assert second["accuracy"] >= second["accuracy_merged"] - 0.01
    assert second["agreement"] > 0.95
    size = (out / "model.onnx").stat().st_size
    assert first["bytes"] == (out / first["file"]).stat().st_size < size

    runner = open_onnx(out / "model.onnx", threads=1)
    x, y = kit.digits((0, 1, 2, 3, 4, 5, 6), 300, part="test")
    batch = {runner.session.get_inputs()[0].name: x.reshape(len(x), -1)}
    for number in (2, 1, 2):
        adapter = open_adapter(out / f"{adapters[number - 1]}.onnx_adapter")
        merged = open_onnx(workspace / "generations" / f"00000{number}" / "model.onnx", threads=1)
        expected, found = merged.run(batch), runner.using(adapter).run(batch)
        assert adapter.facts.labels == tuple(json.loads(merged.metadata["pslora.labels"]))
        assert found.shape == expected.shape == (len(x), len(adapter.facts.labels))
        assert np.mean(found.argmax(1) == expected.argmax(1)) > (0.999 if number == 1 else 0.95)
    right = np.array(adapter.facts.labels)[found.argmax(1)] == y.astype(str)
    assert right.mean() > 0.8
    assert runner.run(batch).shape == (len(x), 0)

    # the same again, and alone: an update is the adapter, model.onnx stays as it was
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert run(*ask, "--overwrite").code == 0
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    alone = run("export", workspace, tmp_path / "one", "--format", "ort-adapter")
    assert alone.code == 0
    names = {Path(name).name for name in alone.facts["files"]}
    assert names.isdisjoint({"generation-000001.json", "generation-000001.onnx_adapter"})
    for name in ("model.onnx", "generation-000002.onnx_adapter", "generation-000002.json"):
        assert (tmp_path / "one" / name).read_bytes() == before[name], name


def planted(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[str, np.ndarray], np.ndarray]
) -> None:
    """Every adapter's parameters are changed on their way into the file."""
    honest = ort_adapters.adapter_parameters

    def changed(*arguments: Any) -> dict[str, np.ndarray]:
        return {name: change(name, value) for name, value in honest(*arguments).items()}

    monkeypatch.setattr(ort_adapters, "adapter_parameters", changed)


def test_cut_factors_are_measured_and_refused_when_they_cost_too_much(
    workspace: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, before = tmp_path / "out", kit.snapshot(workspace)
    data = kit.digits_npz(tmp_path / "held.npz", (0, 1, 2, 3, 4, 5, 6), 300, part="test")
    ask = ("export", workspace, out, "--format", "ort-adapter", "--data", data, "--max-rank", 1)
    done = run(*ask)
    assert done.code == 0, done.facts
    (found,) = done.facts["adapters"]
    assert (found["rank"], found["samples"]) == (1, 300)
    assert found["max_relative_error"] > 0.1
    assert found["held_max_abs_error"] > 1e-3
    assert any("% of 300 samples" in note for note in done.facts["notes"])

    planted(monkeypatch, lambda name, value: -value if name.startswith("head.") else value)
    kept = {p.name: p.read_bytes() for p in out.iterdir()}
    refused = run(*ask, "--overwrite")
    assert (refused.code, refused.facts["error"]) == (3, "GateRefusedError")
    assert refused.facts["where"] == "generation-000002.onnx_adapter"
    assert refused.facts["expected"] == "at most 1 points below the merged model"
    assert "--max-rank" in refused.facts["remedy"]
    assert {p.name: p.read_bytes() for p in out.iterdir()} == kept
    assert run(*ask, "--overwrite", "--max-drop", 1).code == 0
    assert kit.snapshot(workspace) == before


def test_an_exact_adapter_has_to_equal_torch(
    workspace: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, lambda name, value: 2 * value if "lora_B" in name else value)
    ask = ("export", workspace, tmp_path / "out", "--format", "ort-adapter", "--generation", 1)
    refused = run(*ask, "--max-drop", 1)
    assert (refused.code, refused.facts["error"]) == (3, "GateRefusedError")
    assert "equal to torch's" in refused.facts["expected"]
    assert not (tmp_path / "out").exists()


def test_wrong_use_and_a_damaged_generation(workspace: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    several = run("export", workspace, out, "--format", "onnx", "--generations", 2)
    assert (several.code, several.facts["where"]) == (2, "--generations")
    path = workspace / "generations" / "000001" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    found = run("export", workspace, out, "--format", "ort-adapter", "--generations", 2)
    assert (found.code, found.facts["error"]) == (4, "WorkspaceError")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert not out.exists()
