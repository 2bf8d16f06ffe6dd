"""The stream of a merge: tiles, spans that the kernel copies, memory, hostile and changing files."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_pslora import merge_tiles
from edge_pslora.config import MERGE_RULES
from edge_pslora.errors import AdapterError, ModelError
from edge_pslora.merge_files import merge
from edge_pslora.workspace.durable import Append
from edge_pslora.workspace.tensors import read_tensors, write_tensors
from tests.reference_merge import merge_all
from tests.workspace.merge_kit import factors, literal_deltas, make_adapter, make_base

no_reset = HealthCheck.function_scoped_fixture


def save(path: Path, tensors: dict, order: list[str]) -> None:
    """A valid safetensors file whose tensors lie in this order, which is not the library's."""
    header, data = {}, b""
    for name in order:
        value = tensors[name]
        code = {"float32": "F32", "int64": "I64", "bool": "BOOL", "int8": "I8"}[value.dtype.name]
        end = len(data) + value.nbytes
        header[name] = {"dtype": code, "shape": value.shape, "data_offsets": [len(data), end]}
        data += value.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@settings(max_examples=20, deadline=None, suppress_health_check=[no_reset])
@given(data=st.data(), rule=st.sampled_from(MERGE_RULES))
def test_the_order_of_tensors_in_a_file_is_irrelevant(tmp_path_factory, data, rule):
    folder = tmp_path_factory.mktemp("order")
    base = make_base(folder / "base")
    base |= {"flags": np.array([True, False, True]), "small": np.arange(5, dtype=np.int8)}
    found = set()
    for turn in range(2):
        names = sorted(base)
        order = data.draw(st.permutations(names)) if turn else names
        save(folder / f"base{turn}", base, order)
        keys = sorted(factors(1))
        keys = data.draw(st.permutations(keys)) if turn else keys
        folders = []
        for seed in (1, 2):
            tensors = {f"base_model.model.{key}": factors(seed)[key] for key in keys}
            adapter = make_adapter(folder / f"a{turn}{seed}", {})
            save(adapter / "adapter_model.safetensors", tensors, list(tensors))
            folders.append(adapter)
        merge(folders, folder / f"base{turn}", folder / "out", rule)
        found.add(digest(folder / "out"))
    assert len(found) == 1
    for name, value in read_tensors(folder / "out").items():
        if name not in literal_deltas(factors(1), 1.0):
            np.testing.assert_array_equal(value, base[name])


@settings(max_examples=20, deadline=None, suppress_health_check=[no_reset])
@given(
    count=st.integers(1, 5),
    rule=st.sampled_from(["max_magnitude", "cumulative"]),
    tile=st.sampled_from([1, 3, 8, 1 << 17]),
)
def test_streaming_equals_the_merge_of_all_at_once(tmp_path_factory, count, rule, tile):
    folder = tmp_path_factory.mktemp("fold")
    zeros = {name: np.zeros(shape, np.float64) for name, shape in {"m.weight": (6, 4)}.items()}
    write_tensors(folder / "base", zeros)
    deltas, folders = [], []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        # small whole numbers: products, sums and the reference are exact, and ties are frequent
        A, B = rng.integers(-2, 3, (2, 4)), rng.integers(-2, 3, (6, 2))
        A[0, 0] = B[0, 0] = 1  # never an update of zeros alone
        B[0, 1] = 0
        named = {"m.lora_A.weight": A.astype(np.float32), "m.lora_B.weight": B.astype(np.float32)}
        folders.append(make_adapter(folder / f"a{seed}", named, lora_alpha=2))
        deltas.append((B @ A).astype(np.float64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge_tiles, "_TILE", tile)
        merge(folders, folder / "base", folder / "out", rule)
    np.testing.assert_array_equal(read_tensors(folder / "out")["m.weight"], merge_all(rule, deltas))


@pytest.mark.parametrize("rule", MERGE_RULES)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_tiles_change_no_more_than_rounding(tmp_path, monkeypatch, rule, dtype):
    make_base(tmp_path / "base", dtype)
    folders = [make_adapter(tmp_path / f"a{seed}", factors(seed)) for seed in (1, 2, 3)]
    results = []
    for tile in (1 << 17, 7, 1):
        monkeypatch.setattr(merge_tiles, "_TILE", tile)
        merge(folders, tmp_path / "base", tmp_path / "out", rule)
        results.append(read_tensors(tmp_path / "out"))
    step = float(ml_dtypes.finfo(dtype).eps)
    for other in results[1:]:
        for name, value in results[0].items():
            one, two = (np.asarray(v, np.float64) for v in (value, other[name]))
            np.testing.assert_allclose(one, two, rtol=step, atol=1e-6, err_msg=name)


def test_adjacent_tensors_are_copied_in_one_call_and_not_read(tmp_path, monkeypatch):
    names = [f"t{i:02d}.weight" for i in range(20)]
    base = {name: np.full((8, 4), i, np.float32) for i, name in enumerate(names)}
    write_tensors(tmp_path / "base", base)
    tensors = {
        "t07.lora_A.weight": np.ones((2, 4), np.float32),
        "t07.lora_B.weight": np.ones((8, 2), np.float32),
    }
    folder = make_adapter(tmp_path / "a", tensors)
    spans = []
    real = Append.copy

    def copy(self, source, offset, length, path, *, error):
        spans.append(length)
        real(self, source, offset, length, path, error=error)

    monkeypatch.setattr(Append, "copy", copy)
    merge([folder], tmp_path / "base", tmp_path / "out")
    assert spans == [7 * 128, 12 * 128]
    result = read_tensors(tmp_path / "out")
    changed = {name for name in names if not np.array_equal(base[name], result[name])}
    assert changed == {"t07.weight"}


@pytest.mark.parametrize("count", [1, 3])
def test_memory_is_bounded_by_the_tile_whatever_the_model(tmp_path, count):
    shape, names = (2048, 1024), [f"layer.{i}" for i in range(6)]
    largest = 4 * shape[0] * shape[1]
    write_tensors(
        tmp_path / "base", {f"{name}.weight": np.ones(shape, np.float32) for name in names}
    )
    tensors = {f"{n}.lora_A.weight": np.ones((2, shape[1]), np.float32) for n in names[:4]}
    tensors |= {f"{n}.lora_B.weight": np.ones((shape[0], 2), np.float32) for n in names[:4]}
    folders = [make_adapter(tmp_path / f"a{i}", tensors) for i in range(count)]
    tracemalloc.start()
    merge(folders, tmp_path / "base", tmp_path / "out", "cumulative", np.inf)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < largest / 2


def test_flags_that_are_not_flags_are_refused_though_nothing_changes_them(tmp_path):
    base = {"encoder.q.weight": np.ones((6, 4), np.float32), "flags": np.array([True, True])}
    save(tmp_path / "base", base, ["encoder.q.weight", "flags"])
    tensors = {key: value for key, value in factors(1).items() if ".q." in key}
    folder = make_adapter(tmp_path / "a", tensors)
    merge([folder], tmp_path / "base", tmp_path / "out")
    np.testing.assert_array_equal(read_tensors(tmp_path / "out")["flags"], [True, True])
    (tmp_path / "base").write_bytes((tmp_path / "base").read_bytes()[:-1] + b"\2")
    with pytest.raises(ModelError, match="0 or 1 in each byte"):
        merge([folder], tmp_path / "base", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("where", ["adapted", "copied"])
def test_a_base_that_shrinks_meanwhile_is_an_error(tmp_path, monkeypatch, where):
    make_base(tmp_path / "base")
    folder = make_adapter(tmp_path / "a", factors(1))
    keep = (tmp_path / "base").stat().st_size - (400 if where == "adapted" else 8)
    real = Append.__call__

    def shrink(self, data):
        os.truncate(tmp_path / "base", keep)
        real(self, data)

    monkeypatch.setattr(Append, "__call__", shrink)
    with pytest.raises(ModelError, match="changed while read"):
        merge([folder], tmp_path / "base", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "a"}


def test_a_base_that_is_not_finite_is_blamed(tmp_path):
    base = make_base(tmp_path / "base")
    base["encoder.q.weight"][2, 1] = np.nan
    write_tensors(tmp_path / "base", base)
    folder = make_adapter(tmp_path / "a", factors(1))
    with pytest.raises(ModelError, match=r"base, encoder\.q\.weight: expected finite values"):
        merge([folder], tmp_path / "base", tmp_path / "out")
    base["encoder.q.weight"][2, 1], base["classifier.weight"][0, 0] = 0, np.nan
    write_tensors(tmp_path / "base", base)
    merge([folder], tmp_path / "base", tmp_path / "out")  # what nobody touches is copied as it is


def test_a_base_in_several_files_is_refused(tmp_path):
    folder = make_adapter(tmp_path / "a", factors(1))
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match=r"all weights in one model\.safetensors.*max_shard_size"):
        merge([folder], tmp_path / "base", tmp_path / "out")


def test_the_command_runs_where_there_is_no_torch(tmp_path):
    make_base(tmp_path / "base")
    folder = make_adapter(tmp_path / "a", factors(1))
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'peft', 'transformers')));"
        "from edge_pslora.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["merge", folder, "--base", tmp_path / "base", "--out", tmp_path / "out", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["merged"]) == 3


def test_an_adapter_that_does_nothing_is_an_error(tmp_path):
    write_tensors(
        tmp_path / "base",
        {"m.in_proj_weight": np.ones((12, 4)), "m.out_proj.weight": np.ones((4, 4))},
    )
    pairs = {"m.": 12, "m.base_layer.out_proj.": 4}
    tensors = {f"{p}lora_A.weight": np.zeros((2, 4), np.float32) for p in pairs}
    tensors |= {f"{p}lora_B.weight": np.zeros((n, 2), np.float32) for p, n in pairs.items()}
    nothing = make_adapter(tmp_path / "a", tensors)
    with pytest.raises(AdapterError, match="an update that is not zero; found zeros only"):
        merge([nothing], tmp_path / "base", tmp_path / "out")
    tensors["m.lora_A.weight"] = np.ones((2, 4), np.float32)
    half = make_adapter(tmp_path / "b", tensors)
    with pytest.raises(AdapterError, match=r"m\.in_proj_weight.*an update that is zero"):
        merge([half], tmp_path / "base", tmp_path / "out")
    tensors["m.lora_B.weight"] = np.full((12, 2), 0.1, np.float32)
    good = make_adapter(tmp_path / "c", tensors)
    report = merge([good], tmp_path / "base", tmp_path / "out")
    assert report.merged == ("m.in_proj_weight",)
