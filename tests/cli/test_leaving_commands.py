"""`export` and `merge` on real files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from edge_pslora.cli.main import main
from edge_pslora.workspace.tensors import write_tensors


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A PEFT folder for one layer "fc" [3, 4], rank 2, scaling 2."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["fc"]}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    generator = np.random.default_rng(0)
    tensors = {
        "base_model.model.fc.lora_A.weight": generator.normal(size=(2, 4)).astype(np.float32),
        "base_model.model.fc.lora_B.weight": generator.normal(size=(3, 2)).astype(np.float32),
    }
    write_tensors(folder / "adapter_model.safetensors", tensors)
    return folder


def test_merge_adds_the_update_to_the_base(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_tensors(base, {"fc.weight": weight, "fc.bias": np.ones(3, np.float32)})
    arguments = ["merge", str(adapter), "--base", str(base), "--out", str(out)]
    assert main([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["merged"] == ["fc.weight"]
    factors = load_file(adapter / "adapter_model.safetensors")
    update = (
        2
        * factors["base_model.model.fc.lora_B.weight"]
        @ (factors["base_model.model.fc.lora_A.weight"])
    )
    np.testing.assert_allclose(load_file(out)["fc.weight"], weight + update, rtol=1e-6)

    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "1, joined by constructive" in text
    assert "2, of which 1 were merged" in text


def test_merge_of_nothing_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    gone = str(tmp_path / "gone")
    assert main(["merge", gone, "--base", gone, "--out", str(out)]) == 4
    assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()


def test_export_of_a_format_that_is_not_there_writes_nothing(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code = main(["export", str(workspace), str(out), "--format", "onnx"])
    assert code in (2, 4)
    assert "model.onnx" in capsys.readouterr().err
    assert not out.exists()


def test_export_inside_the_workspace_is_wrong_use(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(workspace), str(workspace / "out"), "--format", "safetensors"]
    assert main([*arguments, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "UsageError"
