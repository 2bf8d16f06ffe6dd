"""The section `hostile` in its quick form, that it catches what it is for, and the checkers it replaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_pslora.data.read import read_dataset
from edge_pslora.errors import DataError, ModelError
from edge_pslora.exporters.onnx_trial import try_onnx
from tests.torture import forged_data
from tests.torture.hostile import PLANTS
from tests.torture.mutants import Mutant, mutants
from tests.torture.plan import Row

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}


@pytest.mark.slow
def test_no_mutant_is_more_than_a_line(tmp_path: Path) -> None:
    """In a process of its own: the section replaces programs by forks, which no other test should meet."""
    rows = tmp_path / "rows.json"
    command = [sys.executable, "-m", "tests.torture", "hostile", "--quick", "--rows", str(rows)]
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=False, timeout=400)
    found = [Row(**row) for row in json.loads(rows.read_text())]
    assert len(found) > 40
    assert [f"{row.what}: {row.note}" for row in found if not row.met] == []


def test_each_planted_fault_is_caught() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture.hostile_faults"],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    found = json.loads(done.stdout)
    assert found.pop("none")["met"]
    assert found.keys() == PLANTS.keys()
    assert [name for name, row in found.items() if row["met"]] == []
    said = {
        "dies by a signal": "signal 11",
        "hangs": "over 3 s",
        "eats memory": "MiB",
        "prints two lines": "a line more",
        "unpickles": "pickle.find_class",
        "writes outside": "elsewhere",
        "runs code": "exec (",
        "raises anything": "KeyError",
    }
    assert [name for name, words in said.items() if words not in found[name]["note"]] == []


def test_mutants_are_the_same_for_the_same_seed() -> None:
    import random

    def some(seed: int) -> list[Mutant]:
        return list(mutants(b"a,b\n1,2\n", random.Random(seed), 60))

    assert some(1) == some(1)
    assert some(1) != some(2)
    assert len(some(1)) >= 60
    assert len({m.content for m in some(1)}) > 40


def test_the_real_checker_of_parquet_says_the_same(tmp_path: Path) -> None:
    """The section runs it as a fork."""
    path = tmp_path / "d.parquet"
    name, content = next(forged_data.parquet_forged(True))
    path.write_bytes(content[:-9])
    with pytest.raises(DataError, match="Parquet"):
        read_dataset(path)
    assert name == "equal rows"


def test_a_graph_that_never_fits_ends_its_own_process_only(tmp_path: Path) -> None:
    """What the static check cannot see: a size that is computed."""
    onnx = pytest.importorskip("onnx")
    import numpy as np

    helper = onnx.helper
    nodes = [
        helper.make_node("Mul", ["s", "s"], ["t"]),
        helper.make_node("ConstantOfShape", ["t"], ["y"]),
    ]
    shape = onnx.numpy_helper.from_array(np.array([1 << 17], np.int64), "s")
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [], [y], [shape])
    path = tmp_path / "m.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path
    )
    with pytest.raises(ModelError, match="within its limits") as caught:
        try_onnx(path)
    assert "\n" not in str(caught.value)
