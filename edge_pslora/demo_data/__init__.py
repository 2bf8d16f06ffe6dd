"""The data that `edge-pslora demo` learns from; source and licence are in README.md beside it."""

from __future__ import annotations

from importlib.resources import as_file, files

import numpy as np
import numpy.typing as npt


def load_digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The 1,797 handwritten digits of 13 writers.

    Returns:
        images: uint8 [1797, 8, 8], ink per 4 x 4 block, 0 (none) to 16 (full).
        labels: int64 [1797], 0 to 9.
    """
    with (
        as_file(files(__package__) / "digits.npz") as path,
        np.load(path, allow_pickle=False) as archive,
    ):
        return archive["images"], archive["labels"].astype(np.int64)
