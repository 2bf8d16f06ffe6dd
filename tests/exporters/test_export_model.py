"""Exported folders of Hugging Face models: the right head, and layers that the file calls otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edge_pslora.exporters.export import export_generation
from edge_pslora.exporters.export_options import ExportOptions
from edge_pslora.exporters.peft_adapter import read_peft_adapter
from edge_pslora.workspace.tensors import read_tensors
from tests.exporters.test_export_generation import (
    SHAPES,
    base_tensors,
    layers_of,
    new_workspace,
    publish,
)


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_an_old_classifier_never_answers_for_the_generation(tmp_path: Path, bias: float) -> None:
    """One without a bias can hold a head without one; else transformers finds none, and says so."""
    opened = new_workspace(tmp_path / "w", head_module="score", head_labels=None)
    tensors = base_tensors() | {"score.weight": np.full((9, 8), 7, np.float32)}
    tensors["pslora_head.weight"] = np.ones((2, 8), np.float32)
    publish(opened, tensors, layers_of(1), bias)
    result = export_generation(opened.path, tmp_path / "out", ExportOptions("safetensors"))
    found = read_tensors(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pslora_head.weight" not in found
    if bias == 0:
        assert np.array_equal(found["score.weight"], np.ones((2, 8)))
        assert config["id2label"] == {"0": "no", "1": "yes"}
        assert "AutoModelForSequenceClassification" in card
        assert result.notes == ()
    else:
        assert "score.weight" not in found
        assert "id2label" not in config
        assert "head.safetensors" in card
        assert any("head.safetensors" in note for note in result.notes)
    assert set(base_tensors()) <= set(found)


def test_layers_that_transformers_renames_are_found_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "blocks.0.q_proj"
    monkeypatch.setitem(SHAPES, path, SHAPES["fc"])
    opened = new_workspace(tmp_path / "w", file_names={f"{path}.weight": "model.fc.weight"})
    publish(opened, publish(opened, base_tensors(), layers_of(1, (path,))), layers_of(2, (path,)))
    result = export_generation(opened.path, tmp_path / "out", ExportOptions("peft"))
    assert result.facts["left_out"] == []
    after = read_tensors(opened.generation(2).path / "model.safetensors")["model.fc.weight"]
    delta = after - base_tensors()["model.fc.weight"]
    layer = read_peft_adapter(tmp_path / "out").layers[path]
    assert np.linalg.norm(layer.delta() - delta) <= 1.1e-3 * np.linalg.norm(delta) > 0
