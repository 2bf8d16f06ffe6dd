"""That the process without torch has none, and that it says what goes wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, save
from torch import nn

from tests.torch_free import TorchFree, assert_same_decisions, assert_the_device_agrees
from tests.torch_free_child import ABSENT, _Absent


def _twice(path: Path, kind: str = "Add", domain: str = "") -> Path:
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", "x"], ["y"], domain=domain)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


def test_what_is_absent_cannot_be_imported() -> None:
    for name in ABSENT:
        with pytest.raises(ModuleNotFoundError):
            _Absent().find_spec(f"{name}.part")
    assert _Absent().find_spec("numpy") is None


def test_a_file_that_computes_something_else_is_found(device: TorchFree, tmp_path: Path) -> None:
    path = _twice(tmp_path / "m.onnx")
    batches = [{"x": torch.randn(size, 2)} for size in (1, 4)]
    assert_the_device_agrees(device, path, Times(2.0), batches)
    with pytest.raises(AssertionError):
        assert_the_device_agrees(device, path, Times(2.001), batches)
    with pytest.raises(AssertionError, match="one batch size"):
        assert_the_device_agrees(device, path, Times(2.0), batches[:1])
    with pytest.raises(AssertionError, match="Invalid"):
        device.run(path, {"x": np.zeros((1, 3), np.float32)})
    with pytest.raises(AssertionError):
        device.run(_twice(tmp_path / "n.onnx", "NoSuchOperator"), {"x": np.zeros((1, 2))})
    assert device.run(path, {"x": np.ones((1, 2), np.float32)}).tolist() == [[2.0, 2.0]]


def test_decisions_may_differ_only_where_torch_is_level() -> None:
    level = np.float32([[1.0, 1.0 + 1e-6]])
    assert_same_decisions(level, level[:, ::-1], 1)
    small = np.float32([[1e-5, 2e-5]])
    with pytest.raises(AssertionError):
        assert_same_decisions(small, small[:, ::-1], 1)
    with pytest.raises(AssertionError):
        assert_same_decisions(small, -small, None)
