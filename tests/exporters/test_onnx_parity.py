"""The runner and the comparison: planted faults are found, wrong use is one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edge_pslora.errors import ModelError, UsageError
from edge_pslora.exporters.parity import check_parity, compare
from edge_pslora.exporters.run import open_onnx, run_onnx


class Affine(nn.Module):
    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.bias


def add_model(path: Path, bias: float = 0.0) -> Path:
    """x [batch, 3] + bias, made by hand: these tests need no exporter."""
    node = helper.make_node("Add", ["x", "bias"], ["logits"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.float32([bias]), "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"task": "t"})
    onnx.save(model, path)
    return path


def test_equal_models_agree(tmp_path: Path) -> None:
    batches = [{"x": torch.randn(size, 3)} for size in (1, 7)]
    parity = check_parity(Affine(), add_model(tmp_path / "m.onnx"), batches, threads=1)
    assert (parity.max_abs_error, parity.max_rel_error, parity.agreement) == (0.0, 0.0, 1.0)
    assert parity.batch_sizes == (1, 7)


def test_a_planted_fault_is_measured(tmp_path: Path) -> None:
    batch = {"x": torch.tensor([[1.0, 2.0, 4.0]])}
    parity = check_parity(Affine(0.5), add_model(tmp_path / "m.onnx"), [batch], threads=1)
    assert parity.max_abs_error == pytest.approx(0.5)
    assert parity.max_rel_error == pytest.approx(0.5 / 4.5)
    assert parity.agreement == 1.0


@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_values_that_are_not_finite_never_pass(fault: float) -> None:
    good = np.ones((2, 3), np.float32)
    bad = good.copy()
    bad[1, 2] = fault
    for pair in ((good, bad), (bad, good), (bad, bad)):
        parity = compare([pair])
        assert parity.max_abs_error == np.inf
        assert parity.agreement == 0.0


def test_other_shapes_never_pass() -> None:
    assert compare([(np.ones((2, 3)), np.ones((2, 1)))]).max_abs_error == np.inf


logits = arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=st.floats(-9, 9, width=32)
)


@given(logits, st.floats(0, 1, width=32))
def test_error_is_the_largest_shift_and_batches_only_add(values: np.ndarray, shift: float) -> None:
    shifted = values + np.float32(shift)
    true_shift = float(np.abs(shifted.astype(float) - values).max())
    one = compare([(values, shifted)])
    two = compare([(values, values), (values, shifted)])
    assert one.max_abs_error == true_shift == two.max_abs_error
    assert 0.0 <= one.agreement <= two.agreement <= 1.0


def test_regression_agrees_by_value() -> None:
    expected = np.float32([[1.0], [2.0]])
    assert compare([(expected, expected + np.float32([[0.0], [0.5]]))], None).agreement == 0.5


def test_no_batches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one batch"):
        check_parity(Affine(), add_model(tmp_path / "m.onnx"), [])


def test_runner_casts_and_knows_the_file(tmp_path: Path) -> None:
    runner = open_onnx(add_model(tmp_path / "m.onnx", bias=1.0), threads=1)
    assert runner.metadata["task"] == "t"
    assert dict(runner.input_types) == {"x": np.dtype(np.float32)}
    assert runner.run({"x": np.zeros((2, 3), np.float64)}).tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize(
    "batch", [{}, {"y": np.zeros((1, 3))}, {"x": np.zeros((1, 3)), "y": np.zeros(1)}]
)
def test_other_input_names_are_refused(tmp_path: Path, batch: dict[str, np.ndarray]) -> None:
    with pytest.raises(ModelError, match="expected the inputs x"):
        run_onnx(add_model(tmp_path / "m.onnx"), batch, threads=1)


def test_a_wrong_shape_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError) as caught:
        run_onnx(add_model(tmp_path / "m.onnx"), {"x": np.zeros((1, 4))}, threads=1)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [None, b"", b"not a model", "cut"])
def test_damaged_files_are_named(
    tmp_path: Path, content: bytes | str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.onnx"
    if content == "cut":
        data = add_model(path).read_bytes()
        path.write_bytes(data[: len(data) // 2])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.onnx"):
        open_onnx(path, threads=1)
    assert capfd.readouterr() == ("", "")


def test_running_needs_no_torch(tmp_path: Path) -> None:
    path = add_model(tmp_path / "m.onnx")
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['onnx'] = None\n"
        "import pathlib, numpy\n"
        "from edge_pslora.exporters.run import run_onnx\n"
        "print(run_onnx(pathlib.Path(sys.argv[1]), {'x': numpy.ones((1, 3))}, threads=1).tolist())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60
    )
    assert (result.stdout, result.stderr) == ("[[1.0, 1.0, 1.0]]\n", "")
