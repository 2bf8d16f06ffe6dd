"""Damage at every byte of small files: a valid data set or one line of DataError, nothing else."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_pslora.data.read import ReadOptions, read_dataset
from edge_pslora.data.types import Dataset
from edge_pslora.errors import DataError

LENIENT = ReadOptions(max_bad_fraction=0.5, max_bytes=1 << 20)


def _npz(*, compressed: bool, text: bool) -> bytes:
    out = io.BytesIO()
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    y = np.array(["a", "b", "ü", "a"]) if text else np.array([0, 1, 2, 0])
    (np.savez_compressed if compressed else np.savez)(out, x=x, y=y)
    return out.getvalue()


FILES = {
    "a.csv": b'a,b,label\n1,2,x\n3.5,,y\n"4",NA,"z"\n',
    "b.tsv": b"1\t2\t0\n3\t4\t1\n",
    "c.csv": 'text,label\n"one, \u00fc",x\ntwo,y\n'.encode(),
    "d.jsonl": '{"text": "\u00fc", "label": "x"}\n{"text": "b", "label": 1.5}\n'.encode(),
    "e.npz": _npz(compressed=False, text=False),
    "f.npz": _npz(compressed=True, text=True),
}


def accepted(path: Path, options: ReadOptions) -> Dataset | None:
    """The data set, or None for one line of DataError."""
    try:
        return read_dataset(path, options)
    except DataError as error:
        message = str(error)
    assert "\n" not in message
    return None


def check(path: Path) -> None:
    """Reads `path`; whatever is accepted keeps the promises of data/types.py."""
    data = accepted(path, LENIENT)
    if data is None:
        return
    train = data.train
    assert len(train.inputs) == len(train.targets) > 0
    if train.modality == "table":
        assert isinstance(train.inputs, np.ndarray)
        assert train.inputs.dtype == np.float32
        assert not np.isinf(train.inputs).any()
    if train.task_type == "regression":
        assert np.isfinite(train.targets).all()
    else:
        assert all(name and name.strip() == name for name in train.targets.tolist())
    assert all((row.where + row.reason).isprintable() for row in data.rejected)


@pytest.mark.parametrize("name", FILES)
def test_every_truncation(tmp_path: Path, name: str) -> None:
    path, whole = tmp_path / name, FILES[name]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        check(path)


@pytest.mark.parametrize("name", FILES)
def test_every_byte_with_bits_flipped(tmp_path: Path, name: str) -> None:
    path, whole = tmp_path / name, FILES[name]
    # All bits of the archives were tried once; each run takes two per byte to stay quick.
    every = range(8) if len(whole) < 200 else (0, 5)
    for position, bit in ((p, (p + b) % 8) for p in range(len(whole)) for b in every):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << bit
        path.write_bytes(flipped)
        check(path)


@pytest.mark.parametrize("name", FILES)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_random_damage(tmp_path: Path, name: str, data: st.DataObject) -> None:
    whole = FILES[name]
    begin = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(begin, min(len(whole), begin + 8)))
    filler = data.draw(st.binary(max_size=16))
    path = tmp_path / name
    path.write_bytes(whole[:begin] + filler + whole[end:])
    check(path)


@pytest.mark.parametrize("name", FILES)
def test_trailing_bytes_and_other_files_content(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for other in FILES.values():
        path.write_bytes(other)
        check(path)
        path.write_bytes(FILES[name] + other)
        check(path)
        path.write_bytes(FILES[name] + b"\0\xff trailing")
        check(path)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=st.text(st.sampled_from('1,;\t"\n\r xa?-.e'), max_size=60),
    suffix=st.sampled_from((".csv", ".tsv")),
    column=st.sampled_from((None, "0", "-1", "x")),
)
def test_any_table(tmp_path: Path, content: str, suffix: str, column: str | None) -> None:
    path = tmp_path / ("t" + suffix)
    path.write_bytes(content.encode())
    data = accepted(path, ReadOptions(label_column=column, max_bad_fraction=1.0))
    assert data is None or len(data.train) > 0


def test_a_file_of_bad_rows_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_pslora.data.tally.MAX_REJECTED", 50)
    path = tmp_path / "d.jsonl"
    path.write_text("x\n" * 1000)
    with pytest.raises(DataError, match="more than 50 rows"):
        read_dataset(path, ReadOptions(max_bad_fraction=1.0))
