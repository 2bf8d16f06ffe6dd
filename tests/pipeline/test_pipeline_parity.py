"""The exported file has to compute what torch computes; if not, the session is refused, forced or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edge_pslora.config import GateConfig
from edge_pslora.errors import GateRefusedError
from edge_pslora.exporters import onnx_export
from edge_pslora.exporters.parity import ROUNDING, Parity
from edge_pslora.pipeline import onnx_writing, proving
from edge_pslora.tasks import TASKS
from edge_pslora.workspace.workspace import Workspace
from tests.pipeline import pipeline_kit as kit
from tests.tiny import ArrayInputs

INPUTS = ArrayInputs(np.zeros((9, 2), np.float32))


@pytest.mark.parametrize(
    ("absolute", "relative", "dtype", "unit", "passes"),
    [
        (9e-5, 9e-5, "float32", 1.0, True),  # small outputs: the absolute limit counts
        (5e-4, 4e-6, "float32", 1.0, True),  # logits of a hundred: float32 has no more digits
        (5e-4, 2e-5, "float32", 1.0, False),
        (float("inf"), float("inf"), "float32", 1.0, False),
        (float("nan"), float("nan"), "float32", 1.0, False),
        (5e-3, 5e-3, "float16", 1.0, True),
        (9e-3, 9e-3, "float16", 1.0, False),
        (5e-2, 5e-2, "bfloat16", 1.0, True),
        # values that vary by a thousandth or by thousands
        (5e-6, 5e-3, "float32", 1e-3, False),
        (5e-2, 5e-3, "float32", 1e3, True),
    ],
)
def test_the_limit_grows_with_the_outputs(monkeypatch, absolute, relative, dtype, unit, passes):
    found = Parity(absolute, relative, 1.0, (1, 7), dtype=dtype)
    monkeypatch.setattr(proving, "check_parity", lambda *args, **more: found)
    arguments = (nn.Identity(), Path("m.onnx"), INPUTS, GateConfig(), TASKS["classification"])
    if passes:
        assert proving.prove_export(*arguments, unit=unit) == found
        return
    with pytest.raises(GateRefusedError, match=r"m.onnx: expected outputs equal to torch's"):
        proving.prove_export(*arguments, unit=unit)


def test_a_prediction_that_differs_is_refused_however_small_the_error(monkeypatch):
    found = Parity(1e-6, 1e-6, 0.9, (1, 7), ties=1, differing=1)
    monkeypatch.setattr(proving, "check_parity", lambda *args, **more: found)
    with pytest.raises(GateRefusedError, match=r"found 1 others \(90.00% agree, 1 are level\)"):
        proving.prove_export(
            nn.Identity(), Path("m.onnx"), INPUTS, GateConfig(), TASKS["classification"]
        )


def test_what_is_not_finite_is_json_all_the_same(monkeypatch):
    found = Parity(float("inf"), float("nan"), 0.0, (1, 7))
    monkeypatch.setattr(proving, "check_parity", lambda *args, **more: found)
    with pytest.raises(GateRefusedError) as caught:
        proving.prove_export(
            nn.Identity(), Path("m.onnx"), INPUTS, GateConfig(), TASKS["classification"]
        )
    facts = json.loads(json.dumps(caught.value.to_dict(), allow_nan=False))
    assert (facts["onnx_max_abs_error"], facts["exit_code"]) == (None, 3)


def test_every_dtype_has_limits_and_a_coarser_one_wider(monkeypatch):
    assert list(ROUNDING.values()) == sorted(ROUNDING.values())
    assert ROUNDING["float32"] == GateConfig().max_onnx_rel_error


class Sequences:
    """Token ids [N, T] of equal length, as EncodedInputs."""

    def __init__(self, ids: torch.Tensor) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def lengths(self) -> np.ndarray:
        return np.full(len(self.ids), self.ids.shape[1])

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        return {"x": self.ids[torch.from_numpy(indices)]}


def sums(path: Path, batch: str | int, axis: str | int) -> Path:
    """x [batch, axis] -> its sum along the latter and minus it, by hand."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["x", "one"], ["sum"], keepdims=1),
            helper.make_node("Neg", ["sum"], ["less"]),
            helper.make_node("Concat", ["sum", "less"], ["logits"], axis=1),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, axis])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 2])],
        [numpy_helper.from_array(np.int64([1]), "one")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


class Sums(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = x.sum(1, keepdim=True)
        return torch.cat([total, -total], 1)


def test_two_sizes_and_two_lengths(tmp_path):
    samples = Sequences(torch.rand(20, 6, generator=torch.Generator().manual_seed(0)))
    path = sums(tmp_path / "m.onnx", "batch", "sequence")
    arguments = (Sums(), path, samples, GateConfig(), TASKS["classification"])
    axes = {"x": ("batch", "sequence")}
    found = proving.prove_export(*arguments, axes=axes)
    assert found.batch_sizes == (1, 7)
    # all have one length: one of them is shortened
    assert found.lengths == (5, 6)
    assert proving.prove_export(*arguments).lengths == ()


@pytest.mark.parametrize(("batch", "axis"), [(1, "sequence"), ("batch", 6)])
def test_a_file_for_one_size_only_is_refused(tmp_path, batch, axis):
    samples = Sequences(torch.rand(20, 6))
    path = sums(tmp_path / "m.onnx", batch, axis)
    with pytest.raises(GateRefusedError, match="a file that runs at every batch size and length"):
        proving.prove_export(
            *(Sums(), path, samples, GateConfig(), TASKS["classification"]),
            axes={"x": ("batch", "sequence")},
        )


def _changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any], None]:
    def plant(model: Any) -> None:
        (tensor,) = [t for t in model.graph.initializer if t.name == name]
        value = change(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(value, name))

    return plant


def _other_epsilon(model: Any) -> None:
    (first, *_) = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    (epsilon,) = [a for a in first.attribute if a.name == "epsilon"]
    epsilon.f = 0.01


FAULTS = {
    "a weight that is a thousandth off": (_changed("head.weight", lambda w: w * 1.001), ()),
    "two labels that changed places": (_changed("head.weight", lambda w: w[[1, 0, *range(2, 10)]]), ()),
    "another epsilon, and forced": (_other_epsilon, ("--force",)),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_computes_something_else_is_refused(
    fault, workspace, tmp_path, monkeypatch, run
):
    plant, more = FAULTS[fault]
    real = onnx_export.export_onnx

    def faulty(classifier: Any, example: Any, axes: Any, path: Path, **options: Any) -> Any:
        files = real(classifier, example, axes, path, **options)
        model = onnx.load(path)
        plant(model)
        onnx.save(model, path)
        return files

    serving = kit.files_of(workspace, 2)
    data = kit.digits_npz(tmp_path / "3.npz", (7, 8, 9))
    with monkeypatch.context() as patched:
        patched.setattr(onnx_writing, "_patch", lambda *given: "a planted fault")
        patched.setattr(onnx_export, "export_onnx", faulty)
        refused = run("adapt", data, "--workspace", workspace, *more)
    assert refused.code == 3
    assert refused.facts["error"] == "GateRefusedError"
    assert "outputs equal to torch's within 1.0e-04" in refused.facts["expected"]
    assert (refused.facts["promoted"], refused.facts["generation"]) == (False, 2)
    assert "a difference of" in refused.facts["reason"]
    assert refused.facts["onnx_max_abs_error"] > 1e-4
    assert refused.facts["onnx_batch_sizes"] == [1, 7]
    opened = Workspace.open(workspace)
    assert opened.published(None).number == 2
    assert opened.generations() == (1, 2)
    assert opened.status(verify=True)["damage"] == []
    assert kit.files_of(workspace, 2) == serving
    assert [folder.name for folder in (workspace / "staging").iterdir()] == ["refused"]
    assert (workspace / "staging" / "refused" / "model.onnx").is_file()
    if more:  # and without the fault the same session is published
        done = run("adapt", data, "--workspace", workspace)
        assert (done.code, done.facts["generation"]) == (0, 3)
        assert done.facts["onnx_max_rel_error"] < 1e-5
        assert (done.facts["onnx_agreement"], done.facts["onnx_ties"]) == (1.0, 0)
        assert done.facts["onnx_batch_sizes"] == [1, 7]
        assert "batches of 1 and 7" in (workspace / "generations/000003/report.html").read_text()
