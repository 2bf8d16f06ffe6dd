"""Every format against every kind of damage: one line of DataError, or rows set aside, or a note."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_pslora.data.read import ReadOptions, read_dataset
from edge_pslora.data.types import Dataset
from edge_pslora.errors import DataError
from edge_pslora.pipeline.preparing import parts

ROWS = 40
FIRST = ReadOptions(min_classes=2)
WINDOWS = ReadOptions(min_classes=2, window_seconds=0.1, rate_hz=50)

Row = tuple[list[float], str]


def rows(n: int = ROWS) -> list[Row]:
    rng = np.random.default_rng(0)
    return [([round(float(v), 3) for v in rng.random(3)], "ab"[i // 20 % 2]) for i in range(n)]


def _delimited(path: Path, data: list[Row], delimiter: str) -> None:
    lines = [delimiter.join(("f0", "f1", "f2", "label"))]
    lines += [delimiter.join([*map(str, x), y]) for x, y in data]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def csv(path: Path, data: list[Row]) -> None:
    _delimited(path, data, ",")


def tsv(path: Path, data: list[Row]) -> None:
    _delimited(path, data, "\t")


def _arrays(data: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([x for x, _ in data], np.float64).reshape(-1, 3), np.array([y for _, y in data])


def npz(path: Path, data: list[Row]) -> None:
    x, y = _arrays(data)
    np.savez_compressed(path, x=x, y=y)


def npy(path: Path, data: list[Row]) -> None:
    x, y = _arrays(data)
    np.save(path, x)
    np.save(path.with_name("d_y.npy"), y)


def jsonl(path: Path, data: list[Row]) -> None:
    lines = [json.dumps({"text": f"some words {x}", "label": y}) for x, y in data]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def parquet(path: Path, data: list[Row]) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    x, y = _arrays(data)
    columns = {f"f{i}": x[:, i] for i in range(3)} | {"label": y.tolist()}
    pq.write_table(pa.table(columns), path)


def txt(path: Path, data: list[Row]) -> None:
    text = "\n\n".join(f"A paragraph of words, number {i}. It ends here." for i in range(len(data)))
    path.write_text(text + "\n", encoding="utf-8")


def folder(path: Path, data: list[Row]) -> None:
    path.mkdir(exist_ok=True)
    jsonl(path / "train.jsonl", data)


def sensor(path: Path, data: list[Row]) -> None:
    lines = ["timestamp,ax,ay,az,label"]
    lines += [f"{20 * i}," + ",".join(map(str, x)) + f",{y}" for i, (x, y) in enumerate(data)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


FORMATS: dict[str, tuple[str, Callable[[Path, list[Row]], None], ReadOptions]] = {
    "csv": ("d.csv", csv, FIRST),
    "tsv": ("d.tsv", tsv, FIRST),
    "npz": ("d.npz", npz, FIRST),
    "npy": ("d.npy", npy, FIRST),
    "jsonl": ("d.jsonl", jsonl, FIRST),
    "parquet": ("d.parquet", parquet, FIRST),
    "txt": ("d.txt", txt, FIRST),
    "folder": ("d", folder, FIRST),
    "sensor": ("d.csv", sensor, WINDOWS),
}
TEXT = ("csv", "tsv", "jsonl", "txt", "folder", "sensor")
NUMBERS = ("csv", "tsv", "npz", "npy", "parquet", "sensor")
LABELLED = tuple(name for name in FORMATS if name != "txt")


def file_of(path: Path) -> Path:
    return path / "train.jsonl" if path.is_dir() else path


def make(tmp_path: Path, name: str, data: list[Row] | None = None) -> tuple[Path, ReadOptions]:
    file_name, write, options = FORMATS[name]
    write(tmp_path / file_name, rows() if data is None else data)
    return tmp_path / file_name, options


def refused(path: Path, options: ReadOptions) -> str:
    """The one line of the error. Nothing on disk may have changed."""
    before = {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()}
    with pytest.raises(DataError) as caught:
        parts(read_dataset(path, options), 0)
    after = {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()}
    assert after == before
    assert caught.value.exit_code == 4
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.remedy
    return message


def read_or_refused(path: Path, options: ReadOptions) -> Dataset | None:
    """The data, or None for one line of DataError."""
    try:
        return read_dataset(path, options)
    except DataError as error:
        message = str(error)
    assert "\n" not in message
    return None


def good(path: Path, options: ReadOptions) -> Dataset:
    dataset = read_dataset(path, options)
    parts(dataset, 0)
    return dataset


@pytest.mark.parametrize("name", FORMATS)
def test_the_undamaged_file_is_read(tmp_path, name):
    path, options = make(tmp_path, name)
    dataset = good(path, options)
    assert not dataset.rejected
    assert dataset.notes
    assert all(note.isprintable() for note in dataset.notes)


@pytest.mark.parametrize("name", FORMATS)
def test_empty(tmp_path, name):
    path, options = make(tmp_path, name)
    file_of(path).write_bytes(b"")
    assert "an empty file" in refused(path, options)


@pytest.mark.parametrize("name", FORMATS)
def test_only_white_space_or_a_header(tmp_path, name):
    path, options = make(tmp_path, name)
    if name in TEXT:
        file_of(path).write_bytes(b" \n\n\t\n")
        refused(path, options)
    path, options = make(tmp_path, name, [])
    if name == "txt":
        path.write_text("\n")
    if file_of(path).stat().st_size <= 1:
        file_of(path).write_text("\n")
    refused(path, options)


@pytest.mark.parametrize("name", FORMATS)
def test_truncated(tmp_path, name):
    path, options = make(tmp_path, name)
    whole = file_of(path).read_bytes()
    binary = name in ("npz", "npy", "parquet")
    for length in (1, len(whole) // 3, len(whole) - 3):
        file_of(path).write_bytes(whole[:length])
        if binary or length == 1:
            if name == "txt":
                continue  # one letter is a text
            refused(path, options)
        else:
            # what is left of a text file is read; the row that was cut is set aside, or is a row
            dataset = read_or_refused(path, options)
            assert dataset is None or len(dataset.train) <= ROWS


WRONG = [
    (name, other)
    for name in FORMATS
    for other in FORMATS
    if "folder" not in (name, other) and FORMATS[name][0] != FORMATS[other][0]
]


@pytest.mark.parametrize(("name", "other"), WRONG, ids=[f"{a}-as-{b}" for a, b in WRONG])
def test_wrong_extension(tmp_path, name, other):
    """A file of one format under another's name."""
    source, _ = make(tmp_path, name)
    content = source.read_bytes()
    path, options = make(tmp_path, other)
    path.write_bytes(content)
    if {name, other} <= {"csv", "tsv", "txt", "sensor"}:
        # delimiters are found in the content: a table is a table under any of these names
        read_or_refused(path, options)
    elif other == "txt" and name == "jsonl":
        assert good(path, options).train.task_type == "language"
    else:
        refused(path, options)


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1"])
def test_wrong_encoding(tmp_path, name, encoding):
    path, options = make(tmp_path, name)
    text = file_of(path).read_text(encoding="utf-8")
    if encoding == "latin-1":
        text = "\n".join(line[:-1] + "é" + line[-1:] for line in text.split("\n"))
    file_of(path).write_bytes(text.encode(encoding))
    message = refused(path, options)
    assert "UTF-8" in message or "not UTF-8" in message


@pytest.mark.parametrize("name", TEXT)
def test_line_ends_of_windows_and_tabs(tmp_path, name):
    path, options = make(tmp_path, name)
    before = read_dataset(path, options)
    file_of(path).write_bytes(file_of(path).read_bytes().replace(b"\n", b"\r\n"))
    after = read_dataset(path, options)
    assert after.digest == before.digest


BAD_VALUES = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("value", BAD_VALUES)
@pytest.mark.parametrize("name", NUMBERS)
def test_values_that_are_not_finite(tmp_path, name, value):
    """In few rows: missing in a table, else the row is set aside. In all rows: the run ends."""
    data = rows()
    data[3][0][1] = value
    path, options = make(tmp_path, name, data)
    dataset = good(path, options)
    missing = np.isnan(value) and name != "sensor"
    assert len(dataset.rejected) == (0 if missing else 1)
    assert not np.isinf(dataset.train.inputs).any()
    if not missing:
        path, options = make(tmp_path, name, [([value] * 3, y) for _, y in rows()])
        message = refused(path, options)
        assert "first:" in message or f"such as '{value}'" in message


@pytest.mark.parametrize("name", NUMBERS)
def test_a_constant_column_is_a_note(tmp_path, name):
    path, options = make(tmp_path, name, [([x[0], 7.0, x[2]], y) for x, y in rows()])
    notes = good(path, options).notes
    assert sum("constant column" in note for note in notes) == 1


@pytest.mark.parametrize("name", LABELLED)
def test_one_class_only(tmp_path, name):
    path, options = make(tmp_path, name, [(x, "same") for x, _ in rows()])
    assert "at least 2 classes; found 1: same" in refused(path, options)


@pytest.mark.parametrize("name", LABELLED)
def test_a_class_with_one_sample_is_a_note(tmp_path, name):
    data = [*rows(), *[(x, "lonely") for x, _ in rows(5 if name == "sensor" else 1)]]
    path, options = make(tmp_path, name, data)
    notes = good(path, options).notes
    assert any("one sample" in note and "lonely" in note for note in notes), notes


@pytest.mark.parametrize("name", LABELLED)
def test_too_many_rows_without_a_label(tmp_path, name):
    path, options = make(
        tmp_path, name, [(x, "" if i % 5 == 0 else y) for i, (x, y) in enumerate(rows())]
    )
    assert "at most 10% unreadable rows" in refused(path, options)


@pytest.mark.parametrize("name", FORMATS)
def test_a_column_that_is_not_there(tmp_path, name):
    path, options = make(tmp_path, name)
    if name in ("npz", "npy"):
        return  # arrays have no columns
    from dataclasses import replace

    refused(path, replace(options, label_column="species"))


PARQUET_DAMAGE: list[tuple[str, Any]] = [
    ("nested", {"a": [{"b": 1}] * 4, "label": list("abab")}),
    ("text as a feature", {"a": ["x", "y"] * 2, "label": list("abab")}),
    ("dates as a feature", {"a": np.arange(4).astype("datetime64[s]"), "label": list("abab")}),
    ("nothing but nulls as labels", {"a": [1.0] * 4, "label": [None] * 4}),
    ("binary as labels", {"a": [1.0] * 4, "label": [b"\xff"] * 4}),
    ("one column", {"a": [1.0] * 4}),
    ("a text beyond the limit", {"text": ["x" * (2 << 20)] * 4, "label": list("abab")}),
    ("a label beyond the limit", {"a": [1.0] * 4, "label": ["x" * (2 << 20)] * 4}),
]


@pytest.mark.parametrize(("what", "columns"), PARQUET_DAMAGE, ids=[w for w, _ in PARQUET_DAMAGE])
def test_parquet_that_cannot_be_used(tmp_path, what, columns):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    refused(tmp_path / "d.parquet", FIRST)


def test_every_damaged_byte_of_a_parquet_file(tmp_path):
    """Flipped bits anywhere: a data set or one line, never a crash or an endless allocation."""
    parquet(tmp_path / "d.parquet", rows())
    whole = (tmp_path / "d.parquet").read_bytes()
    path = tmp_path / "e.parquet"
    for position in range(0, len(whole), 61):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        read_or_refused(path, ReadOptions(max_bytes=1 << 24))


def test_a_dictionary_that_stands_for_more_than_is_allowed(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    texts = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(5000, np.int32)), pa.array(["x" * (1 << 20)])
    )
    labels = pa.array(["a", "b"] * 2500)
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"text": texts, "label": labels}), path)
    assert path.stat().st_size < 1 << 20
    assert "bytes" in refused(path, ReadOptions(max_bytes=1 << 26))


def test_npy_without_its_labels(tmp_path):
    np.save(tmp_path / "d.npy", np.ones((4, 2)))
    assert "d_y.npy or d_labels.npy" in refused(tmp_path / "d.npy", FIRST)


def test_npy_of_python_objects(tmp_path):
    out = io.BytesIO()
    np.save(out, np.array([{}, {}], dtype=object), allow_pickle=True)
    (tmp_path / "x.npy").write_bytes(out.getvalue())
    np.save(tmp_path / "y.npy", np.arange(2))
    assert "never loaded" in refused(tmp_path / "x.npy", FIRST)


def test_without_pyarrow_the_remedy_names_the_extra(tmp_path, monkeypatch):
    from edge_pslora.errors import InputError

    parquet(tmp_path / "d.parquet", rows())
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"edge-pslora\[parquet\]"):
        read_dataset(tmp_path / "d.parquet")
