"""The ways to merge that bench-core compares: the same files come out of all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.core_merge import NEW_ARRAY, WHERE, measure_merge, merge_ways
from benchmarks.core_merge_child import NUMPY, OURS, PEFT, SYNCED, TORCH, load
from benchmarks.core_merge_files import Case, case_rows, imports_bytes, measure_case
from benchmarks.core_merge_inputs import BLOCK, largest_tensor, synthetic_model, write_adapter
from edge_pslora.config import MERGE_RULES
from edge_pslora.errors import EdgePsloraError
from edge_pslora.workspace.tensors import read_header, read_tensors
from tests.pipeline.hf_kit import SIZES, bert_folder

LAYER = "encoder.layer.0.attention.self"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_loops_write_what_edge_pslora_merge_writes(tmp_path: Path, dtype: str) -> None:
    base = tmp_path / "base.safetensors"
    adapted = synthetic_model(base, dtype, 400_000)
    adapter = write_adapter(tmp_path / "adapter", adapted, rank=2, seed=0)
    found = {}
    for way in (OURS, NUMPY, SYNCED, TORCH):
        out = tmp_path / f"{way}.safetensors"
        load(way)(base, out, [adapter])
        found[way] = read_tensors(out)
    before = read_tensors(base)
    assert any(not np.array_equal(before[name], found[OURS][name]) for name in before)
    # float32: the sums differ in their order; bfloat16: then in the last of its eight bits
    relative = 1e-6 if dtype == "float32" else 2.0**-8
    for way in (NUMPY, SYNCED, TORCH):
        assert found[way].keys() == before.keys()
        for name, value in found[way].items():
            wanted = found[OURS][name].astype(np.float32)
            np.testing.assert_allclose(value.astype(np.float32), wanted, relative, 1e-7)
            if name.removesuffix(".weight") not in adapted:
                assert np.array_equal(value, before[name])


@pytest.mark.filterwarnings("ignore")  # PEFT's own warnings are not ours to fail on
def test_peft_merges_the_same_folder_to_the_same_weights(tmp_path: Path) -> None:
    base = bert_folder(tmp_path / "model") / "model.safetensors"
    width = SIZES["hidden_size"]
    shapes = {f"{LAYER}.{name}": (width, width) for name in ("query", "key")}
    adapter = write_adapter(tmp_path / "adapter", shapes, rank=4, seed=0)
    for way in (OURS, PEFT):
        (tmp_path / way).mkdir()
        load(way)(base, tmp_path / way / "model.safetensors", [adapter])
    ours, theirs = (read_tensors(tmp_path / way / "model.safetensors") for way in (OURS, PEFT))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], 1e-6, 1e-7)


def test_processes_are_measured_beyond_what_they_import(tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    adapted = synthetic_model(base, "float32", 16_000_000)
    adapter = write_adapter(tmp_path / "adapter", adapted, rank=2, seed=0)
    case = Case("case", base, (adapter,), (OURS, NUMPY))
    figures = measure_case(case, repeats=1, threads=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base.safetensors"]
    imports = imports_bytes(case.ways, threads=1)
    rows = {row.figure: row for row in case_rows(case, figures, imports)}
    assert rows["case: edge-pslora merge"].measured > 0
    if imports[NUMPY] is not None:
        loop = rows["case: peak memory / largest tensor, safetensors loop with numpy"]
        # a loop holds the whole model at least once
        assert loop.measured > 0.9 * base.stat().st_size / largest_tensor(base)


def test_a_process_that_fails_is_an_error(tmp_path: Path) -> None:
    case = Case("case", tmp_path / "base.safetensors", (tmp_path / "none",), (OURS,))
    case.base.touch()
    with pytest.raises(EdgePsloraError, match="merge by ours"):
        measure_case(case, repeats=1, threads=1)


def test_a_synthetic_model_has_the_size_asked_for_and_its_largest_tensor_is_adapted(
    tmp_path: Path,
) -> None:
    for dtype, width in (("float32", 4), ("bfloat16", 2)):
        path = tmp_path / dtype
        adapted = synthetic_model(path, dtype, 2_000_000)
        specs = read_header(path).specs
        assert path.stat().st_size == pytest.approx(width / 4 * 2_000_000, rel=0.05)
        assert len(specs) % len(BLOCK) == 0
        largest = max(specs, key=lambda name: specs[name].bytes)
        assert largest.removesuffix(".weight") in adapted
        assert len(adapted) < len(specs)


def test_torch_where_is_the_constructive_rule() -> None:
    _, ways = merge_ways(1000)
    assert set(ways) == {*MERGE_RULES, NEW_ARRAY, WHERE}
    constructive, where = ways[NEW_ARRAY](), ways[WHERE]()
    assert isinstance(where, torch.Tensor)
    np.testing.assert_array_equal(where.numpy(), constructive)


def test_every_way_is_measured_at_every_repeat_beside_a_copy() -> None:
    speeds = measure_merge(1 << 18, repeats=2)
    assert [speed.way for speed in speeds] == [*MERGE_RULES, NEW_ARRAY, WHERE]
    for speed in speeds:
        assert len(speed.bytes_per_second) == len(speed.memcpy) == 2
        assert min(*speed.bytes_per_second, *speed.memcpy) > 0
