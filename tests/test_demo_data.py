"""The bundled data set is whole, small and says where it is from."""

from __future__ import annotations

from importlib.resources import files

import numpy as np

from edge_pslora.demo_data import load_digits


def test_the_digits_are_all_there() -> None:
    images, labels = load_digits()
    assert (images.shape, images.dtype) == ((1797, 8, 8), np.uint8)
    assert (labels.shape, labels.dtype) == ((1797,), np.int64)
    assert (images.min(), images.max()) == (0, 16)
    # The class sizes that UCI documents for this part.
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_the_file_is_small_and_credited() -> None:
    folder = files("edge_pslora.demo_data")
    assert len((folder / "digits.npz").read_bytes()) <= 150_000
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "CC BY 4.0" in text
    assert "Alpaydin" in text
