"""A fingerprint of the data that a generation was made from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_pslora.data.source import open_input
from edge_pslora.data.types import Samples

_CHUNK = 1 << 20
_ROWS = 10_000


def _float_bytes(values: npt.NDArray[np.float32]) -> memoryview:
    """Little-endian bytes in which every NaN looks the same."""
    return np.where(np.isnan(values), np.float32("nan"), values).astype("<f4").ravel().data


def _add(hasher: hashlib._Hash, data: bytes) -> None:
    # The length first: ("ab", "c") and ("a", "bc") must differ.
    hasher.update(len(data).to_bytes(8, "little"))
    hasher.update(data)


def _file_digest(path: Path) -> bytes:
    hasher = hashlib.sha256()
    with open_input(path) as stream:
        while chunk := stream.read(_CHUNK):
            hasher.update(chunk)
    return hasher.digest()


def _samples_digest(samples: Samples) -> bytes:
    hasher = hashlib.sha256()
    header = (samples.modality, samples.task_type, str(len(samples)), *samples.feature_names)
    for word in (str(len(header)), *header):
        _add(hasher, word.encode("utf-8", "surrogatepass"))
    if isinstance(samples.inputs, np.ndarray):
        _add(hasher, str(samples.inputs.shape).encode())
        for block in np.array_split(samples.inputs, max(1, samples.inputs.nbytes // _CHUNK)):
            hasher.update(_float_bytes(block))
    else:
        for item in samples.inputs:
            _add(hasher, item.encode("utf-8") if isinstance(item, str) else _file_digest(item))
    for start in range(0, len(samples), _ROWS):
        targets = samples.targets[start : start + _ROWS]
        if samples.task_type == "regression":
            hasher.update(_float_bytes(targets.astype(np.float32)))
        else:
            for label in targets.tolist():
                _add(hasher, str(label).encode("utf-8"))
    return hasher.digest()


def dataset_digest(*parts: Samples | None) -> str:
    """sha256, hexadecimal, over inputs and targets of each part (train, valid, test) in order.

    Images and recordings count with the bytes of their files, not with their names. None marks an
    absent part.

    Raises:
        DataError: a file can no longer be read.
    """
    hasher = hashlib.sha256()
    for part in parts:
        _add(hasher, b"" if part is None else _samples_digest(part))
    return hasher.hexdigest()
