"""The file delta.safetensors: factors, replaced tensors and what edge_pslora.update.delta says.

Tensors: `factors`, those of all layers one after the other, for each A [r, in] and then B^T [r, out],
as int8, bfloat16 or float32; `scales` bfloat16, with int8 only: for each layer one of each row of A,
then of B^T; `new.NAME`: tensors that replace the parent's, or are added. One pool instead of two
tensors a layer: a header entry takes a tenth of a kilobyte, as much as many a row of factors.

Metadata: the format's version, the text, and the sha256 of the whole file with zeros in the place of
that sha256: no byte of it can change unnoticed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from edge_pslora.config import FACTOR_FORMS, FactorForm
from edge_pslora.core.factor_forms import from_int8, rounded, to_int8
from edge_pslora.errors import AdapterError
from edge_pslora.update import delta as text
from edge_pslora.update.delta import Delta, DeltaLayer
from edge_pslora.workspace.reading import digest_open, read_exactly
from edge_pslora.workspace.tensor_header import (
    DTYPES,
    Header,
    TensorSpec,
    build_header,
    file_order,
)
from edge_pslora.workspace.tensors import TensorFile, open_tensors, write_tensors_streaming

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

DELTA_FILE = "delta.safetensors"
VERSION = "1"
NEW = "new."
_VERSION_KEY, _TEXT_KEY, _DIGEST_KEY = "edge_pslora_delta", "delta", "sha256"
_FACTORS, _SCALES = "factors", "scales"
_CODES: dict[FactorForm, str] = {"int8": "I8", "bf16": "BF16", "float32": "F32"}
_UNKNOWN = "0" * 64
_MAX_HEADER = 16 << 20


@dataclass(frozen=True)
class LayerPlace:
    """Where the factors of one weight [rows, columns] begin: in the numbers, in the scales."""

    layer: DeltaLayer
    rows: int
    columns: int
    number: int
    scale: int


@dataclass(frozen=True)
class DeltaFile:
    """An open delta whose every byte was checked; see open_delta. new: tensors it brings, by name."""

    delta: Delta
    file: TensorFile
    new: Mapping[str, TensorSpec]

    def places(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, LayerPlace]:
        """Where each layer's factors are, by name, for weights of these shapes.

        Raises:
            AdapterError: the file holds factors for other shapes.
        """
        found: dict[str, LayerPlace] = {}
        number = scale = 0
        for layer in self.delta.layers:
            shape = shapes[layer.name]
            rows, columns = shape[0], math.prod(shape[1:])
            found[layer.name] = LayerPlace(layer, rows, columns, number, scale)
            number += layer.rank * (rows + columns)
            scale += 2 * layer.rank
        self._check_sizes(number, scale)
        return found

    def factors(self, place: LayerPlace) -> tuple[Floats, Floats]:
        """left [rows, r] and right [r, columns], float32: the update of the weight as it lies in its
        file, a matrix of its first dimension by all the others, is scaling * left right.

        Raises:
            AdapterError: a factor that is not finite.
        """
        rank, turned = place.layer.rank, place.layer.turned
        out, size = (place.columns, place.rows) if turned else (place.rows, place.columns)
        A = self._read(place.number, place.scale, rank, size)
        B = self._read(place.number + rank * size, place.scale + rank, rank, out)
        return (A.T, B) if turned else (B.T, A)

    def _read(self, number: int, scale: int, rank: int, size: int) -> Floats:
        """[rank, size], float32."""
        part = np.empty(rank * size, DTYPES[_CODES[self.delta.factors]])
        self.file.read_part(_FACTORS, number, part, finite=True)
        matrix = part.reshape(rank, size)
        if self.delta.factors != "int8":
            return matrix.astype(np.float32)
        scales = np.empty(rank, ml_dtypes.bfloat16)
        self.file.read_part(_SCALES, scale, scales, finite=True)
        return from_int8(matrix, scales)

    def _check_sizes(self, numbers: int, scales: int) -> None:
        wanted = {_FACTORS: TensorSpec(_CODES[self.delta.factors], (numbers,))}
        if self.delta.factors == "int8":
            wanted[_SCALES] = TensorSpec("BF16", (scales,))
        specs = self.file.header.specs
        found = {name: spec for name, spec in specs.items() if not name.startswith(NEW)}
        if found != wanted:
            raise AdapterError(
                str(self.file.path),
                expected=", ".join(f"{n} {s.dtype} {list(s.shape)}" for n, s in wanted.items()),
                found=", ".join(f"{n} {s.dtype} {list(s.shape)}" for n, s in found.items())
                or "none",
                remedy="use the files that the delta was made for; nothing was written",
            )


@contextmanager
def open_delta(path: Path) -> Iterator[DeltaFile]:
    """Open a delta and check its sha256 and all that it says of itself.

    Args:
        path: the file, or a folder with delta.safetensors.

    Raises:
        AdapterError: not a delta, of another version, or damaged in any byte.
    """
    path = path / DELTA_FILE if path.is_dir() else path
    with open_tensors(path, max_header=_MAX_HEADER, error=AdapterError) as file:
        header, metadata = file.header, file.header.metadata
        version = metadata.get(_VERSION_KEY)
        if version != VERSION:
            raise AdapterError(
                str(path),
                expected=f"a delta of edge-pslora, format version {VERSION}",
                found="a safetensors file of another kind" if version is None else ascii(version),
                remedy="export one: edge-pslora export WORKSPACE OUT --format delta; a newer version "
                "needs a newer edge-pslora",
            )
        if metadata.keys() != {_VERSION_KEY, _TEXT_KEY, _DIGEST_KEY}:
            raise _damaged(path, "other metadata")
        start = build_header(header.specs, metadata)
        if start != read_exactly(file.descriptor, 0, len(start), path, error=AdapterError):
            raise _damaged(path, "a header that edge-pslora would not write")
        if metadata[_DIGEST_KEY] != _digest(file, header, len(start)):
            raise _damaged(path, "other contents")
        delta = text.decode(metadata[_TEXT_KEY], str(path))
        prefix = len(NEW)
        new = {name[prefix:]: spec for name, spec in header.specs.items() if name.startswith(NEW)}
        yield DeltaFile(delta, file, new)


def _digest(file: TensorFile, header: Header, start: int) -> str:
    """sha256 of the file as it was before it had one; start: where the tensors begin."""
    blank = build_header(header.specs, header.metadata | {_DIGEST_KEY: _UNKNOWN})
    digest = hashlib.sha256(blank)
    digest_open(file.descriptor, start, header.file_bytes, file.path, digest, error=AdapterError)
    return digest.hexdigest()


def write_delta(
    path: Path,
    delta: Delta,
    factors: Mapping[str, tuple[Floats, Floats]],
    new: Mapping[str, TensorSpec],
    read: Callable[[str], Array],
) -> None:
    """Write a delta durably; equal arguments give equal bytes.

    Args:
        factors: by layer A [r, in] and B [out, r], float32, exact in the form `delta.factors`.
        new: tensors to ship whole; read(name) gives each (it is called more than once).
    """
    rows = [row for layer in delta.layers for row in _rows(*factors[layer.name])]
    tensors: dict[str, Array] = {}
    if delta.factors == "int8":
        packed = [to_int8(row) for row in rows]
        numbers: list[Array] = [numbers.reshape(-1) for numbers, _ in packed]
        tensors[_SCALES] = _joined([s for _, s in packed]).astype(ml_dtypes.bfloat16)
        tensors[_FACTORS] = _joined(numbers).astype(np.int8)
    else:
        dtype = ml_dtypes.bfloat16 if delta.factors == "bf16" else np.float32
        tensors[_FACTORS] = _joined([row.reshape(-1) for row in rows]).astype(dtype)
    specs = {_FACTORS: TensorSpec(_CODES[delta.factors], tensors[_FACTORS].shape)}
    if _SCALES in tensors:
        specs[_SCALES] = TensorSpec("BF16", tensors[_SCALES].shape)
    specs |= {NEW + name: spec for name, spec in new.items()}

    def content(name: str) -> Array:
        return read(name[len(NEW) :]) if name.startswith(NEW) else tensors[name]

    metadata = {_VERSION_KEY: VERSION, _TEXT_KEY: text.encode(delta), _DIGEST_KEY: _UNKNOWN}
    digest = hashlib.sha256(build_header(specs, metadata))
    for name in file_order(specs):
        digest.update(np.ascontiguousarray(content(name)).reshape(-1).view(np.uint8).data)
    metadata[_DIGEST_KEY] = digest.hexdigest()
    write_tensors_streaming(path, specs, content, metadata, finite=True)


def smallest_form(factors: Mapping[str, tuple[Floats, Floats]]) -> FactorForm:
    """The smallest form in which every factor is what it is: the one they were rounded to."""
    rows = [row for pair in factors.values() for row in _rows(*pair)]
    return next(
        form
        for form in FACTOR_FORMS
        if all(rounded(form, row).tobytes() == row.tobytes() for row in rows)
    )


def _rows(A: Floats, B: Floats) -> tuple[Floats, Floats]:
    """A [r, in] and B^T [r, out]."""
    return np.ascontiguousarray(A), np.ascontiguousarray(B.T)


def _joined(parts: list[Array]) -> Array:
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _damaged(path: Path, found: str) -> AdapterError:
    return AdapterError(
        str(path),
        expected="a delta as it was exported",
        found=found,
        remedy="the file was damaged or changed on its way; get it again",
    )
