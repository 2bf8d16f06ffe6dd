"""Arrays in .npy files: found by their names, held to their headers, read as .npz is."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_pslora.data.read import ReadOptions, read_dataset
from edge_pslora.errors import DataError

X = np.arange(24, dtype=np.float64).reshape(8, 3)
Y = np.array([0, 1] * 4)


def save(path: Path, array: Any) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("x.npy", "y.npy"),
        ("x.npy", "x_labels.npy"),
        ("walk.npy", "walk_y.npy"),
        ("walk.npy", "walk_labels.npy"),
        ("train_x.npy", "train_y.npy"),
    ],
)
def test_labels_are_found_by_their_name(tmp_path, name, labels):
    save(tmp_path / labels, Y)
    data = read_dataset(save(tmp_path / name, X))
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    assert data.digest == read_dataset(tmp_path / "d.npz").digest
    assert f"labels from {labels}" in data.notes


def test_folders(tmp_path):
    save(tmp_path / "x.npy", X)
    save(tmp_path / "y.npy", Y)
    assert len(read_dataset(tmp_path).train) == 8
    for part in ("valid", "test"):
        save(tmp_path / f"{part}_x.npy", X + 1)
        save(tmp_path / f"{part}_y.npy", Y)
    data = read_dataset(tmp_path)
    assert data.valid is not None
    assert data.test is not None
    np.testing.assert_array_equal(data.valid.inputs, X + 1)
    save(tmp_path / "train_x.npy", X)
    with pytest.raises(DataError, match=r"one file for train; found train_x\.npy, x\.npy"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i2", "u1", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_kind_of_number_and_order(tmp_path, dtype, order):
    x = (np.arange(48).reshape(4, 3, 4) % 2).astype(dtype, order=order)
    save(tmp_path / "x.npy", np.asarray(x, order=order))
    save(tmp_path / "y.npy", np.array(["a", "b", "a", "b"]))
    train = read_dataset(tmp_path / "x.npy").train
    assert train.modality == "array"
    assert train.inputs.flags.c_contiguous
    np.testing.assert_array_equal(train.inputs, x.astype(np.float32))


def _bytes(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


GOOD = _bytes(X)
DAMAGE = [
    (GOOD[:-1], "as large as its header says"),
    (GOOD + b"x", "as large as its header says"),
    (GOOD[:50], "a header cut short"),
    (b"PK\x03\x04" + GOOD, "a zip archive"),
    (b"hello, world", "no .npy array"),
    (_bytes(np.array([{}], dtype=object)), "never loaded"),
    (_bytes(np.array(["a", "b"])), "numbers in x.npy"),
    (_bytes(np.array([1 + 2j])), "elements of type"),
    (_bytes(np.ones(8)), "x of shape"),
    (_bytes(np.float64(3)), "x of shape"),
    (_bytes(np.ones((7, 3))), "as many rows"),
    (_bytes(np.ones((0, 3))), "as many rows"),
]


@pytest.mark.parametrize(("content", "words"), DAMAGE, ids=[words for _, words in DAMAGE])
def test_damage_is_named(tmp_path, content, words):
    (tmp_path / "x.npy").write_bytes(content)
    save(tmp_path / "y.npy", Y)
    with pytest.raises(DataError, match=words) as caught:
        read_dataset(tmp_path / "x.npy")
    assert "\n" not in str(caught.value)


def test_damaged_labels_and_limits(tmp_path):
    save(tmp_path / "x.npy", X)
    (tmp_path / "y.npy").write_bytes(_bytes(np.array([{}] * 8, dtype=object)))
    with pytest.raises(DataError, match=r"y\.npy.*never loaded"):
        read_dataset(tmp_path / "x.npy")
    save(tmp_path / "y.npy", np.float64(1))
    with pytest.raises(DataError, match="a single number"):
        read_dataset(tmp_path / "x.npy")
    save(tmp_path / "y.npy", Y)
    with pytest.raises(DataError, match="at most 100 bytes"):
        read_dataset(tmp_path / "x.npy", ReadOptions(max_bytes=100))


def test_the_file_is_not_changed_by_codes_for_missing_values(tmp_path):
    save(tmp_path / "y.npy", Y)
    path = save(tmp_path / "x.npy", X.astype(np.float32))
    before = path.read_bytes()
    train = read_dataset(path, ReadOptions(missing=(3.0,))).train
    assert np.isnan(train.inputs).sum() == 1
    assert path.read_bytes() == before
