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
from edge_pslora.exporters.parity import ROUNDING, check_parity, compare
from edge_pslora.exporters.run import open_onnx, run_onnx
from edge_pslora.tasks import TASKS


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


def test_each_batch_has_to_keep_to_one_of_the_limits() -> None:
    small, large = np.float32([[1.0, 0.5]]), np.float32([[400.0, 100.0]])
    parity = compare([(small, small + np.float32(5e-5)), (large, large + np.float32(1e-3))])
    assert parity.max_abs_error > 1e-4
    assert parity.max_rel_error > 1e-5
    assert parity.within(1e-4, 1e-5)
    assert not parity.within(4e-5, 1e-5)
    assert not parity.within(1e-4, 1e-6)
    assert not compare([(small, small * np.nan)]).within(1e9, 1e9)


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


def test_only_where_torch_is_level_may_a_decision_differ() -> None:
    expected = np.float32([[100.0, 50.0], [3.0, 3.0 + 1e-4], [0.0, 1.0]])
    found = expected.copy()
    found[1] = found[1, ::-1]
    parity = compare([(expected, found)])
    assert (parity.ties, parity.differing) == (1, 0)
    assert parity.agreement == pytest.approx(2 / 3)
    # of outputs this small the same error is no rounding: the two labels changed places
    small = np.float32([[1e-4, 0.0], [0.0, 2e-5]])
    parity = compare([(small, small[:, ::-1])])
    assert parity.max_abs_error <= 1e-4
    assert (parity.ties, parity.differing, parity.agreement) == (0, 2, 0.0)


@pytest.mark.parametrize("kind", TASKS)
def test_decisions_of_every_kind_of_task(kind: str) -> None:
    """One decision a sample, a label or a token; of values none."""
    task = TASKS[kind]
    rng = np.random.default_rng(0)
    shape = {"regression": (4, 1), "language": (4, 3, 5)}.get(kind, (4, 5))
    expected = rng.normal(size=shape).astype(np.float32)
    count = {"classification": 4, "multilabel": 20, "language": 12, "regression": 4}[kind]
    same = compare([(expected, expected)], task.predict, task.margin)
    assert (same.agreement, same.ties, same.differing) == (1.0, 0, 0)
    first = (0,) * (expected.ndim - 1)  # a sample, or a token
    other = expected.copy()
    other[first] = -other[first] if kind != "multilabel" else [-other[first][0], *other[first][1:]]
    found = compare([(expected, other)], task.predict, task.margin)
    assert found.differing == (0 if kind == "regression" else 1)
    assert found.agreement == pytest.approx(1 - 1 / count)
    if task.margin is not None:
        level = expected.copy()
        # the last of the best two, so that it wins only by being larger
        rival = 0 if kind == "multilabel" else int(np.argsort(level[first])[-2:].max())
        level[(*first, rival)] = 0.0 if kind == "multilabel" else level[first].max()
        if kind != "multilabel":
            level[(*first, int(np.argsort(expected[first])[-2:].min()))] = expected[first].max()
        near = level.copy()
        near[(*first, rival)] += 1e-6
        found = compare([(level, near), (near, level)], task.predict, task.margin)
        assert (found.ties, found.differing) == (2, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_precision_is_known_by_its_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    module = Affine()
    module.weight = nn.Parameter(torch.zeros(3, dtype=dtype))
    batch = {"x": torch.ones(2, 3).to(torch.float32)}
    found = check_parity(module, add_model(tmp_path / "m.onnx"), [batch], threads=1)
    assert found.dtype == str(dtype).removeprefix("torch.")
    assert found.dtype in ROUNDING


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
