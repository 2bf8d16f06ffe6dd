"""Safetensors: exact round trips, deterministic bytes, and hostile files of every kind refused."""

from __future__ import annotations

import json
import os

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_pslora.errors import AdapterError, EdgePsloraError, WorkspaceError
from edge_pslora.workspace.tensor_header import DTYPES, MAX_HEADER, TensorSpec
from edge_pslora.workspace.tensors import (
    all_finite,
    check_expected,
    open_tensors,
    read_header,
    read_tensors,
    write_tensors,
    write_tensors_streaming,
)

_arrays = st.sampled_from(
    [np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_]
).flatmap(
    lambda dtype: hnp.arrays(
        dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
    )
)
_names = st.from_regex(r"[A-Za-z0-9_.]{1,12}", fullmatch=True)


def save(path, content, data=b"", *, length=None):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    length = len(text) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + text + data)
    return path


@settings(deadline=None, max_examples=60)
@given(
    tensors=st.dictionaries(_names, _arrays, max_size=5), meta=st.dictionaries(_names, st.text())
)
def test_round_trip_is_exact_and_order_free(tmp_path_factory, tensors, meta):
    folder = tmp_path_factory.mktemp("r")
    meta = {k: v for k, v in meta.items() if v.isprintable()}
    write_tensors(folder / "a", tensors, meta)
    write_tensors(folder / "b", dict(reversed(tensors.items())), dict(reversed(meta.items())))
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()
    result = read_tensors(folder / "a", finite=False)
    assert result.keys() == tensors.keys()
    for name, value in tensors.items():
        assert result[name].dtype == value.dtype
        assert result[name].shape == value.shape
        assert result[name].tobytes() == value.tobytes()
    assert read_header(folder / "a").metadata == meta


def test_the_library_reads_what_we_write_and_we_read_what_it_writes(tmp_path):
    tensors = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([1, 2, 3], np.uint8),
        "c": np.array(2.5, np.float64),
    }
    write_tensors(tmp_path / "ours", tensors, {"format": "pt"})
    for name, value in safetensors.numpy.load((tmp_path / "ours").read_bytes()).items():
        np.testing.assert_array_equal(value, tensors[name])
    (tmp_path / "theirs").write_bytes(safetensors.numpy.save(tensors, {"format": "pt"}))
    for name, value in read_tensors(tmp_path / "theirs").items():
        np.testing.assert_array_equal(value, tensors[name])


@pytest.mark.parametrize("code", DTYPES)
def test_every_dtype_round_trips(tmp_path, code):
    value = np.array([[0, 1], [1, 0]]).astype(DTYPES[code])
    write_tensors(tmp_path / "f", {"x": value})
    result = read_tensors(tmp_path / "f")["x"]
    assert result.dtype == value.dtype
    assert result.tobytes() == value.tobytes()
    assert read_header(tmp_path / "f").specs == {"x": TensorSpec(code, (2, 2))}


def test_strides_and_byte_order_do_not_matter(tmp_path):
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_tensors(tmp_path / "a", {"x": value.T})
    write_tensors(tmp_path / "b", {"x": np.ascontiguousarray(value.T).astype(">f4")})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    np.testing.assert_array_equal(read_tensors(tmp_path / "a")["x"], value.T)


def test_tensors_are_aligned(tmp_path):
    write_tensors(
        tmp_path / "f",
        {"a": np.ones(3, np.uint8), "b": np.ones(2, np.float64), "c": np.ones(1, np.float16)},
    )
    header = read_header(tmp_path / "f")
    for name, spec in header.specs.items():
        assert header.offsets[name] % DTYPES[spec.dtype].itemsize == 0


def test_streaming_checks_what_it_is_given(tmp_path):
    specs = {"x": TensorSpec("F32", (2,))}
    for wrong in (np.ones(3, np.float32), np.ones(2, np.float64)):
        with pytest.raises(EdgePsloraError, match="F32"):
            write_tensors_streaming(tmp_path / "f", specs, lambda _, w=wrong: w)
    with pytest.raises(EdgePsloraError, match="finite"):
        write_tensors(tmp_path / "f", {"x": np.float32([1, np.nan])}, finite=True)
    with pytest.raises(EdgePsloraError, match="a name of letters"):
        write_tensors(tmp_path / "f", {"../x": np.ones(1)})
    with pytest.raises(EdgePsloraError, match="convert the array"):
        write_tensors(tmp_path / "f", {"x": np.array([object()])})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_values_are_named(tmp_path, dtype, bad):
    write_tensors(tmp_path / "f", {"fine": np.ones(2), "x": np.array([1, bad]).astype(dtype)})
    with pytest.raises(WorkspaceError, match=r"f, x: expected finite values"):
        read_tensors(tmp_path / "f")
    assert read_tensors(tmp_path / "f", finite=False).keys() == {"fine", "x"}


def test_every_truncation_and_every_appended_byte_is_refused(tmp_path):
    path = tmp_path / "f"
    write_tensors(path, {"x": np.ones(3, np.float32), "y": np.ones(2, np.int8)}, {"k": "v"})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(WorkspaceError):
            read_tensors(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(WorkspaceError, match="bytes of tensors"):
        read_tensors(path)


def test_no_flipped_header_bit_gives_anything_but_an_error_or_a_checked_file(tmp_path):
    path = tmp_path / "f"
    write_tensors(path, {"x": np.ones(3, np.float32), "y": np.ones(2, np.int8)})
    whole = path.read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    for bit in range(8 * header_end):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(flipped)
        try:
            result = read_tensors(path, finite=False)
        except WorkspaceError:
            continue
        assert sum(value.nbytes for value in result.values()) == 14  # a name or a dtype changed


GOOD = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}
HOSTILE = {
    "repeated name": (b'{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
                      b'"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', "repeated"),
    "nul": ({"a\0b": GOOD}, "names of letters"),
    "parent": ({"../x": GOOD}, "names of letters"),
    "empty name": ({"": GOOD}, "names of letters"),
    "newline": ({"x\n": GOOD}, "names of letters"),
    "unicode": ({"é": GOOD}, "names of letters"),
    "long name": ({"x" * 600: GOOD}, "names of letters"),
    "dtype": ({"x": {**GOOD, "dtype": "F7"}}, "dtype one of"),
    "dtype list": ({"x": {**GOOD, "dtype": ["U8"]}}, "dtype one of"),
    "negative shape": ({"x": {**GOOD, "shape": [-2]}}, "a shape"),
    "float shape": ({"x": {**GOOD, "shape": [2.0]}}, "a shape"),
    "bool shape": ({"x": {**GOOD, "shape": [True, 2]}}, "a shape"),
    "huge shape": ({"x": {**GOOD, "shape": [2**63, 0]}}, "a shape"),
    "many dimensions": ({"x": {**GOOD, "shape": [1] * 40}}, "a shape"),
    "size": ({"x": {**GOOD, "shape": [3]}}, "3 bytes for U8"),
    "backwards": ({"x": {**GOOD, "data_offsets": [2, 0]}}, "2 bytes for U8"),
    "one offset": ({"x": {**GOOD, "data_offsets": [0]}}, "two offsets"),
    "extra field": ({"x": {**GOOD, "more": 1}}, "other fields"),
    "missing field": ({"x": {"dtype": "U8", "shape": [2]}}, "other fields"),
    "not an entry": ({"x": 3}, "other fields"),
    "hole": ({"x": {**GOOD, "shape": [1], "data_offsets": [1, 2]}}, "a hole"),
    "overlap": ({"x": GOOD, "y": {**GOOD, "shape": [1], "data_offsets": [1, 2]}}, "an overlap"),
    "same bytes twice": ({"x": GOOD, "y": GOOD}, "an overlap"),
    "beyond the end": ({"x": {**GOOD, "shape": [9], "data_offsets": [0, 9]}}, "9 bytes of tensors"),
    "no tensors": ({}, "0 bytes of tensors"),
    "metadata numbers": ({"__metadata__": {"a": 1}, "x": GOOD}, "metadata"),
    "metadata list": ({"__metadata__": [], "x": GOOD}, "metadata"),
    "not json": (b"{nonsense", "strict JSON"),
    "nan": (b'{"x":NaN}', "strict JSON"),
    "not utf-8": (b'{"\xff":1}', "strict JSON"),
    "surrogate": (b'{"__metadata__":{"a":"\\ud800"}}', "strict JSON"),
    "deep": (b'{"x":' * 60_000, "strict JSON"),
    "big number": (b'{"x":' + b"9" * 5000 + b"}", "strict JSON"),
    "list": (b"[1]", "a JSON header"),
    "leading space": (b" {}", "a JSON header"),
    "byte order mark": (b"\xef\xbb\xbf{}", "a JSON header"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused_in_one_line(tmp_path, case):
    content, message = HOSTILE[case]
    path = save(tmp_path / "f", content, b"\1\2")
    with pytest.raises(AdapterError, match=message) as caught:
        read_tensors(path, error=AdapterError)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize("length", [0, 1, 3, 2**20 + 1, 2**31, 2**63, 2**64 - 1])
def test_lying_header_lengths(tmp_path, length):
    path = save(tmp_path / "f", {"x": GOOD}, b"\1\2", length=length)
    with pytest.raises(WorkspaceError):
        read_tensors(path)


def test_the_header_limit_is_a_parameter(tmp_path):
    name = {"__metadata__": {"k": "v" * MAX_HEADER}, "x": GOOD}
    path = save(tmp_path / "f", name, b"\1\2")
    with pytest.raises(WorkspaceError, match="a header length"):
        read_header(path)
    assert list(read_header(path, max_header=4 * MAX_HEADER).specs) == ["x"]


def test_booleans_are_zero_or_one(tmp_path):
    path = save(tmp_path / "f", {"x": {**GOOD, "dtype": "BOOL"}}, b"\1\2")
    with pytest.raises(WorkspaceError, match="0 or 1"):
        read_tensors(path)


def test_what_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "pickle").write_bytes(b"\x80\x04\x95" + b"x" * 40)
    for name in ("pipe", "dangling", "empty", "pickle", ".", "none", "a\0b"):
        with pytest.raises(WorkspaceError) as caught:
            read_header(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    write_tensors(tmp_path / "f", {"x": np.ones(1000, np.float32)})
    with open_tensors(tmp_path / "f") as file:
        os.truncate(tmp_path / "f", 2000)
        with pytest.raises(WorkspaceError, match="changed while read"):
            file.read("x")
        with pytest.raises(WorkspaceError, match="a tensor y"):
            file.read("y")


def test_expected_names_and_shapes(tmp_path):
    write_tensors(tmp_path / "f", {"x": np.ones((2, 3)), "y": np.ones(1)})
    header = read_header(tmp_path / "f")
    check_expected(header, {"x": (2, 3), "y": (1,)}, "f")
    for expected, message in [
        ({"x": (2, 3)}, "f, y: expected no such tensor; found shape"),
        ({"x": (2, 3), "y": (1,), "z": ()}, r"f, z: expected shape \(\); found no such tensor"),
        ({"x": (3, 2), "y": (1,)}, r"shape \(3, 2\); found shape \(2, 3\)"),
    ]:
        with pytest.raises(WorkspaceError, match=message):
            check_expected(header, expected, "f")


@pytest.mark.parametrize("code", DTYPES)
def test_parts_are_slices_of_the_whole(tmp_path, code):
    values = (np.arange(24).reshape(2, 3, 4) % 2).astype(DTYPES[code])
    write_tensors(tmp_path / "f", {"a": np.ones(3, np.float64), "x": values})
    with open_tensors(tmp_path / "f") as file:
        for first, count in ((0, 24), (0, 1), (5, 9), (23, 1), (24, 0)):
            part = np.empty(count, DTYPES[code])
            file.read_part("x", first, part, finite=True)
            assert part.tobytes() == values.reshape(-1)[first : first + count].tobytes()


def test_parts_are_checked_like_wholes(tmp_path):
    write_tensors(tmp_path / "f", {"x": np.float32([1, 2, np.nan, 4])})
    with open_tensors(tmp_path / "f") as file:
        file.read_part("x", 0, np.empty(2, np.float32), finite=True)
        with pytest.raises(WorkspaceError, match="f, x: expected finite values"):
            file.read_part("x", 1, np.empty(2, np.float32), finite=True)
        os.truncate(tmp_path / "f", 70)
        with pytest.raises(WorkspaceError, match="changed while read"):
            file.read_part("x", 0, np.empty(4, np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.float8_e5m2, ">f4"])
def test_finite_arrays_of_any_layout(dtype):
    values = np.arange(12).reshape(3, 4).astype(dtype)
    for view in (values, values.T, values[:, ::2], values[0, 0].reshape(()), values[:0]):
        assert all_finite(view)
    values[1, 2] = np.inf
    assert not all_finite(values)
    assert not all_finite(values.T)
    assert all_finite(values[:, :2])
