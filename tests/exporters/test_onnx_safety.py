"""Graphs from outside: what is refused before onnxruntime sees it, and that our own are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_pslora.errors import ModelError
from edge_pslora.exporters.onnx_safety import check_onnx
from tests.torture.forged_graphs import onnx_forged

FINE = {"no output", "itself", "2000 weights", "20,000 operators"}  # onnxruntime's own to refuse


def _plain() -> bytes:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 2]) for n in "xy")
    weight = numpy_helper.from_array(np.ones((2,), np.float32), "w")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


def test_a_plain_graph_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(_plain())
    check_onnx(path)


@pytest.mark.parametrize("mutant", list(onnx_forged(_plain())), ids=lambda m: ascii(m.name))
def test_what_was_forged_is_refused_in_one_line(tmp_path: Path, mutant: Any) -> None:
    path = tmp_path / "model.onnx"
    undo = mutant.put(path)
    small = mutant.name.endswith((" 1048576", "1048576 squared"))  # so much is allowed, or not seen
    computed = "squared" in mutant.name
    if mutant.name in FINE or small or computed:
        check_onnx(path)
    else:
        with pytest.raises(ModelError) as caught:
            check_onnx(path)
        assert "\n" not in str(caught.value)
    if undo is not None:
        undo()


def test_a_file_of_our_own_may_branch(tmp_path: Path) -> None:
    """Operators are held against the list only for files from outside."""
    branch = next(m for m in onnx_forged(_plain()) if m.name == "a branch")
    path = tmp_path / "model.onnx"
    branch.put(path)
    check_onnx(path, operators=False)
