"""Arrays: read back as written; lies, bombs and objects are refused before allocation."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_pslora.data.read import ReadOptions, read_dataset
from edge_pslora.data.types import Dataset
from edge_pslora.errors import DataError

DTYPES = ("<f4", ">f4", "<f8", "<f2", "u1", "<i2", ">i8", "?")


def read(content: bytes, **options: object) -> Dataset:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "d.npz"
        path.write_bytes(content)
        return read_dataset(path, ReadOptions(**options))  # type: ignore[arg-type]


def packed(*, compressed: bool = False, **arrays: Any) -> bytes:
    out = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(out, **arrays)
    return out.getvalue()


def archive(method: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, data in members.items():
            file.writestr(name + ".npy", data)
    return out.getvalue()


def npy(descr: str, shape: tuple[int, ...], data: bytes = b"") -> bytes:
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


Y2 = npy("<i8", (2,), bytes(16))


@settings(max_examples=80, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), compressed=st.booleans(), fort=st.booleans())
def test_what_is_written_is_read_back(
    data: st.DataObject, dtype: str, compressed: bool, fort: bool
) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=4, max_side=4))
    elements = hnp.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=False)
    if dtype == "<f8":
        elements = st.floats(-1e30, 1e30)
    x = data.draw(hnp.arrays(dtype, shape, elements=elements))
    y = data.draw(hnp.arrays("<i8", shape[0]))
    content = packed(compressed=compressed, x=np.asfortranarray(x) if fort else x, y=y)
    train = read(content).train
    np.testing.assert_array_equal(train.inputs, x.astype(np.float32))
    assert train.targets.tolist() == [str(v) for v in y.tolist()]
    assert train.modality == ("table" if x.ndim == 2 else "array")


@pytest.mark.parametrize(
    ("y", "targets"),
    [
        (np.array(["a", "ü"]), ["a", "ü"]),
        (np.array(["a", "ü"]).astype(">U3"), ["a", "ü"]),
        (np.array([b"a", b"b"]), ["a", "b"]),
        (np.array([True, False]), ["True", "False"]),
        (np.array([[3], [4]]), ["3", "4"]),
        (np.array([1.0, 2.0]), ["1", "2"]),
        (np.array([1.5, 2.0]), [1.5, 2.0]),
        (np.array([1, 2**63], dtype=np.uint64), ["1", str(2**63)]),
    ],
)
def test_labels_of_every_kind(y: Any, targets: list[object]) -> None:
    assert read(packed(x=np.ones((2, 3)), y=y)).train.targets.tolist() == targets


def test_missing_and_infinite_values() -> None:
    x = np.ones((20, 2))
    x[3, 1], x[4, 0], x[5, 0] = np.nan, -9, np.inf
    data = read(packed(x=x, y=np.arange(20) % 2), missing=(-9.0,))
    assert np.isnan(np.asarray(data.train.inputs)).sum() == 2
    assert [row.where for row in data.rejected] == ["d.npz: row 5"]
    in_array = read(packed(x=x.reshape(20, 2, 1), y=np.arange(20) % 2))
    assert [row.where for row in in_array.rejected] == ["d.npz: row 3", "d.npz: row 5"]


def test_labels_that_are_no_text_are_set_aside() -> None:
    y = np.full(40, "a")
    y.view(np.uint32)[[3, 4]] = [0x110000, 0xD800]
    data = read(packed(x=np.ones((40, 2)), y=y))
    assert [row.where for row in data.rejected] == ["d.npz: row 3", "d.npz: row 4"]
    data = read(packed(x=np.ones((20, 2)), y=np.array([b"a"] * 19 + [b"\xff"])))
    assert [row.where for row in data.rejected] == ["d.npz: row 19"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"\x93NUMPY\x01\x00", "NumPy array"),
        (b"\x80\x04\x95", "pickle"),
        (b"nothing", "another kind of file"),
        (b"PK\x03\x04 and no more", "undamaged"),
        (archive(x=Y2), "found x;"),
        (archive(x=npy("|O", (2,)), y=Y2), "Python objects"),
        (packed(x=np.ones((2, 2)), y=np.array(["a", None], dtype=object)), "Python objects"),
        (archive(x=npy("<c16", (2, 1), bytes(32)), y=Y2), "<c16"),
        (archive(x=npy("<M8[s]", (2, 1), bytes(16)), y=Y2), "elements of type"),
        (archive(x=npy("<i3", (2, 1), bytes(6)), y=Y2), "elements of type"),
        (archive(x=npy("<U0", (2, 1)), y=Y2), "elements of type"),
        (archive(x=npy("<f4", (2, 1), bytes(7)), y=Y2), "as large as its header says"),
        (archive(x=npy("<f4", (2, 1), bytes(9)), y=Y2), "as large as its header says"),
        (archive(x=npy("<f4", (1 << 36, 1)), y=Y2), "as large as its header says"),
        (archive(x=npy("<f4", (1 << 60, 0)), y=Y2), "unusable shape"),
        (archive(x=npy("<f4", (1 << 40, 0)), y=Y2), "shape"),
        (archive(x=npy("<f4", (-2, 1), bytes(8)), y=Y2), "unusable shape"),
        (archive(x=npy("<f4", (1,) * 9, bytes(4)), y=Y2), "unusable shape"),
        (archive(x=b"\x93NUMPY\x01\x00\x05\x00-----", y=Y2), "damaged header"),
        (archive(x=b"\x93NUMPY\x01\x00\x88\x13" + b"-" * 5000 + b"1", y=Y2), "damaged header"),
        (archive(x=b"\x93NUMPY\x01\x00\x88\x13" + b"(" * 5000, y=Y2), "damaged header"),
        (archive(x=b"\x93NUMPY\x02\x00\xff\xff\xff\x7f", y=Y2), "a header of"),
        (archive(zipfile.ZIP_LZMA, x=npy("<f4", (2, 1), bytes(8)), y=Y2), "compressed another way"),
        (packed(x=np.ones(2), y=np.ones(2)), "x of shape"),
        (packed(x=np.ones((2, 0)), y=np.ones(2)), "x of shape"),
        (packed(x=np.ones((0, 2)), y=np.ones(0)), "at least one row"),
        (packed(x=np.ones((2, 2)), y=np.full((2, 2), 2.0)), "y of shape"),
        (packed(x=np.ones((2, 2)), y=np.ones(3)), "as many rows"),
        (packed(x=np.array([["a", "b"]]), y=np.ones(1)), "numbers in x"),
        (packed(x=np.full((2, 2), np.inf), y=np.ones(2)), "2 of 2"),
    ],
)
def test_unusable_files_are_explained(content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read(content)
    assert "\n" not in str(caught.value)


def bombs() -> dict[str, bytes]:
    zeros = packed(compressed=True, x=np.zeros((1000, 20_000), dtype=np.uint8), y=np.zeros(1000))
    honest = archive(x=npy("<f4", (2, 1), bytes(8)), y=Y2)
    lying = bytearray(honest)
    # The archive's own directory claims 4 GB for x as well: size fields of the central entry.
    entry = lying.index(b"PK\x01\x02")
    lying[entry + 24 : entry + 28] = b"\xff\xff\xff\xf0"
    # Header and directory agree on 200 MB that the few compressed bytes cannot hold.
    claim = npy("<f4", (50_000_000, 1))
    agreeing = bytearray(archive(zipfile.ZIP_DEFLATED, x=claim, y=Y2))
    entry = agreeing.index(b"PK\x01\x02")
    agreeing[entry + 24 : entry + 28] = (200_000_000 + len(claim)).to_bytes(4, "little")
    return {"zeros": zeros, "directory": bytes(lying), "agreeing": bytes(agreeing)}


@pytest.mark.parametrize(
    ("name", "limit"), [("zeros", 1 << 20), ("directory", 1 << 20), ("agreeing", 1 << 30)]
)
def test_bombs_are_refused_before_they_unfold(name: str, limit: int) -> None:
    content = bombs()[name]
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            read(content, max_bytes=limit)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("member", [0, 1])
def test_a_wrong_checksum_is_refused(method: int, member: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((700, 500)).astype("<f4").tobytes()
    y = npy("<i8", (700,), bytes(5600))
    content = bytearray(archive(method, x=npy("<f4", (700, 500), x), y=y))
    assert len(read(bytes(content)).train) == 700
    entry = content.rindex(b"PK\x01\x02") if member else content.index(b"PK\x01\x02")
    content[entry + 16] ^= 1
    with pytest.raises(DataError, match="CRC"):
        read(bytes(content))


def test_a_member_given_twice_is_refused() -> None:
    out = io.BytesIO(archive(x=npy("<f4", (2, 1), bytes(8)), y=Y2))
    with zipfile.ZipFile(out, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("x.npy", npy("<f4", (2, 1), b"\1" * 8))
    with pytest.raises(DataError, match="one array x"):
        read(out.getvalue())


def test_nothing_is_unpickled_and_nothing_heavy_is_imported(tmp_path: Path) -> None:
    evil = tmp_path / "evil.npz"
    np.savez(evil, x=np.ones((2, 2)), y=np.array([{}, []], dtype=object))
    script = """
import sys
events = []
sys.addaudithook(lambda name, args: events.append(name) if name.startswith("pickle") else None)
from pathlib import Path
from edge_pslora.data.read import ReadOptions, read_dataset
from edge_pslora.errors import DataError
import edge_pslora.data.split
for name in sys.argv[1:]:
    try:
        read_dataset(Path(name), ReadOptions())
    except DataError:
        continue
    raise SystemExit("accepted " + name)
heavy = {"torch", "onnx", "onnxruntime", "transformers", "PIL", "edge_pslora.cli"}
print(events, sorted(heavy & set(sys.modules)))
"""
    pickles = [tmp_path / ("m" + suffix) for suffix in (".pt", ".pth", ".pkl", ".bin", ".npy")]
    for path in pickles:
        path.write_bytes(b"\x80\x04cos\nsystem\n.")
    command = [sys.executable, "-c", script, str(evil), *map(str, pickles)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[] []"), done.stderr
