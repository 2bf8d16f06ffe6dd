"""A user's own nn.Module, from a package in the working directory, with weights from a file."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge_pslora import Workspace, evaluate
from edge_pslora.workspace.tensors import read_tensors, write_tensors
from tests.pipeline import pipeline_kit as kit
from tests.pipeline.device_checks import assert_a_device_runs_it

CODE = '''
from torch import nn


class Net(nn.Module):
    """Rows [N, 64] -> features [N, 48] -> ten scores; the last layer is a usual classifier."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(64, 48), nn.ReLU(), nn.LayerNorm(48), nn.Linear(48, 48), nn.ReLU()
        )
        self.classifier = nn.Linear(48, 10)

    def forward(self, x):
        return self.classifier(self.body(x))


def build():
    return Net()
'''
NAME = "package_of_the_pipeline_tests"


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package, importable, and a safetensors file with its weights."""
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "__init__.py").write_text("")
    (tmp_path / NAME / "nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    for module in [m for m in sys.modules if m.split(".")[0] == NAME]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    namespace: dict[str, object] = {}
    exec(CODE, namespace)
    model = namespace["build"]()
    assert isinstance(model, nn.Module)
    state = {
        n: torch.randn(t.shape, generator=generator) * 0.2 for n, t in model.named_parameters()
    }
    path = tmp_path / "weights.safetensors"
    write_tensors(path, {name: tensor.numpy() for name, tensor in state.items()}, {})
    return path


def test_two_sessions(weights, run, tmp_path, device):
    for number, labels in enumerate(((0, 1, 2), (3, 4, 5))):
        data = kit.digits_npz(tmp_path / f"{number}.npz", labels)
        model = ["--model", f"{NAME}.nets:build", "--weights", weights] if number == 0 else []
        done = run("adapt", data, *model, "--workspace", "w", "--seed", 3)
        assert done.code == 0, done
        assert done.facts["promoted"]
    assert done.facts["labels"] == ["0", "1", "2", "3", "4", "5"]
    assert any("classifier" in note for note in done.facts["notes"])
    test = kit.digits_npz(tmp_path / "test.npz", range(6), part="test")
    found = evaluate(tmp_path / "w", test, compare_torch=True)
    assert (found.agreement, len(found.unknown_labels)) == (1.0, 0)
    assert found.accuracy > 0.75
    assert_a_device_runs_it(device, tmp_path / "w")


def test_only_targets_and_the_head_change(weights, run, tmp_path):
    data = kit.digits_npz(tmp_path / "d.npz", (0, 1, 2))
    model = ("--model", f"{NAME}.nets:build", "--weights", weights)
    done = run("adapt", data, *model, "--workspace", "w", "--target", "body.3")
    assert done.code == 0, done
    before = read_tensors(weights)
    after = read_tensors(Path(done.facts["files"]["model.safetensors"]))
    changed = {n for n in before if not np.array_equal(before[n], after[n])}
    assert changed == {"body.3.weight"}
    assert after.keys() - before.keys() == {"pslora_head.weight", "pslora_head.bias"}
    assert (tmp_path / "w" / "base" / "model.safetensors").read_bytes() == weights.read_bytes()


def test_the_same_model_may_be_named_again_and_another_may_not(weights, run, tmp_path):
    model = ("--model", f"{NAME}.nets:build", "--weights", weights, "--workspace", "w")
    data = kit.digits_npz(tmp_path / "d.npz", (0, 1, 2), 60)
    assert run("adapt", data, *model, "--epochs", 1).code == 0
    before = kit.snapshot(tmp_path / "w")
    other = tmp_path / "other.safetensors"
    tensors = read_tensors(weights)
    write_tensors(other, {name: 2 * array for name, array in tensors.items()}, {})
    wrong = run("adapt", data, *model[:2], "--weights", other, "--workspace", "w")
    assert (wrong.code, wrong.facts["error"]) == (4, "WorkspaceError")
    assert "leave --model out" in wrong.facts["remedy"]
    assert kit.snapshot(tmp_path / "w") == before
    assert run("adapt", data, *model, "--epochs", 1, "--keep-duplicates").code == 0
    assert Workspace.open(tmp_path / "w").generations() == (1, 2)
