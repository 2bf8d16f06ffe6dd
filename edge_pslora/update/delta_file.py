"""The file delta.safetensors: factors, replaced tensors and what edge_pslora.update.delta says.

Tensors: `factors`, those of all layers one after the other, for each A [r, in] and then B^T [r, out],
as int8, bfloat16 or float32; with int12 the high 8 bits of each, the low 4 in `low`, where each matrix
begins at a byte of its own; `scales` float32, with int8 and int12: for each layer one of each row of A,
then of B^T; `new.NAME`: tensors that replace the parent's, or are added. One pool instead of two tensors
a layer: a header entry takes a tenth of a kilobyte, as much as many a row of factors.

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

import numpy as np
import numpy.typing as npt

from edge_pslora.config import FACTOR_FORMS, FactorForm
from edge_pslora.core.factor_forms import (
    LEVELS,
    from_integers,
    join_bits,
    rounded,
    split_bits,
    to_integers,
)
from edge_pslora.errors import AdapterError
from edge_pslora.update import delta as text
from edge_pslora.update.delta import DELTA_FILE as DELTA_FILE
from edge_pslora.update.delta import Delta, DeltaLayer
from edge_pslora.workspace.reading import digest_open, read_exactly
from edge_pslora.workspace.tensor_header import (
    DTYPES,
    Header,
    TensorSpec,
    build_header,
    file_order,
)
from edge_pslora.workspace.tensors import (
    TensorFile,
    open_tensors,
    spec_of,
    write_tensors_streaming,
)

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

VERSION = "1"
NEW = "new."
_VERSION_KEY, _TEXT_KEY, _DIGEST_KEY = "edge_pslora_delta", "delta", "sha256"
_FACTORS, _LOW, _SCALES = "factors", "low", "scales"
_CODES: dict[FactorForm, str] = {"int8": "I8", "int12": "I8", "bf16": "BF16", "float32": "F32"}
_UNKNOWN = "0" * 64
_MAX_HEADER = 16 << 20


@dataclass(frozen=True)
class LayerPlace:
    """Where the factors of one weight [rows, columns] begin: in `factors`, in `low`, in `scales`."""

    layer: DeltaLayer
    rows: int
    columns: int
    number: int
    low: int
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
        number = low = scale = 0
        for layer in self.delta.layers:
            shape, rank = shapes[layer.name], layer.rank
            rows, columns = shape[0], math.prod(shape[1:])
            found[layer.name] = LayerPlace(layer, rows, columns, number, low, scale)
            number += rank * (rows + columns)
            low += _halved(rank * rows) + _halved(rank * columns)
            scale += 2 * rank
        self._check_sizes(number, low, scale)
        return found

    def factors(self, place: LayerPlace) -> tuple[Floats, Floats]:
        """left [rows, r] and right [r, columns], float32: the update of the weight as it lies in its
        file, a matrix of its first dimension by all the others, is scaling * left right.

        Raises:
            AdapterError: a factor that is not finite.
        """
        rank, turned = place.layer.rank, place.layer.turned
        out, size = (place.columns, place.rows) if turned else (place.rows, place.columns)
        low = place.low + _halved(rank * size)
        A = self._read(place.number, place.low, place.scale, rank, size)
        B = self._read(place.number + rank * size, low, place.scale + rank, rank, out)
        return (A.T, B) if turned else (B.T, A)

    def _read(self, number: int, low: int, scale: int, rank: int, size: int) -> Floats:
        """[rank, size], float32."""
        form = self.delta.factors
        part: Array = np.empty(rank * size, DTYPES[_CODES[form]])
        self.file.read_part(_FACTORS, number, part, finite=True)
        if form not in LEVELS:
            return part.reshape(rank, size).astype(np.float32)
        if form == "int12":
            halves = np.empty(_halved(part.size), np.uint8)
            self.file.read_part(_LOW, low, halves)
            part = join_bits(part, halves)
        scales = np.empty(rank, np.float32)
        self.file.read_part(_SCALES, scale, scales, finite=True)
        return from_integers(part.reshape(rank, size), scales)

    def _check_sizes(self, numbers: int, low: int, scales: int) -> None:
        form = self.delta.factors
        wanted = {_FACTORS: TensorSpec(_CODES[form], (numbers,))}
        if form == "int12":
            wanted[_LOW] = TensorSpec("U8", (low,))
        if form in LEVELS:
            wanted[_SCALES] = TensorSpec("F32", (scales,))
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
    tensors = _packed(delta.factors, rows)
    specs = {name: spec_of(array) for name, array in tensors.items()}
    specs |= {NEW + name: spec for name, spec in new.items()}

    def content(name: str) -> Array:
        return read(name[len(NEW) :]) if name.startswith(NEW) else tensors[name]

    metadata = {_VERSION_KEY: VERSION, _TEXT_KEY: text.encode(delta), _DIGEST_KEY: _UNKNOWN}
    digest = hashlib.sha256(build_header(specs, metadata))
    for name in file_order(specs):
        digest.update(np.ascontiguousarray(content(name)).reshape(-1).view(np.uint8).data)
    metadata[_DIGEST_KEY] = digest.hexdigest()
    write_tensors_streaming(path, specs, content, metadata, finite=True)


def _packed(form: FactorForm, rows: list[Floats]) -> dict[str, Array]:
    """The tensors of the factors, which are exact in that form."""
    if form not in LEVELS:
        dtype = DTYPES[_CODES[form]]
        return {_FACTORS: _joined([row.reshape(-1).astype(dtype) for row in rows], dtype)}
    pairs = [to_integers(form, row) for row in rows]
    scales = {_SCALES: _joined([scale for _, scale in pairs], np.dtype(np.float32))}
    if form == "int8":
        numbers = [number.reshape(-1).astype(np.int8) for number, _ in pairs]
        return {_FACTORS: _joined(numbers, np.dtype(np.int8)), **scales}
    halves = [split_bits(number) for number, _ in pairs]
    return {
        _FACTORS: _joined([high for high, _ in halves], np.dtype(np.int8)),
        _LOW: _joined([low for _, low in halves], np.dtype(np.uint8)),
        **scales,
    }


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


def _joined(parts: list[Array], dtype: np.dtype[Any]) -> Array:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


def _halved(numbers: int) -> int:
    """Bytes for the low 4 bits of that many numbers."""
    return (numbers + 1) // 2


def _damaged(path: Path, found: str) -> AdapterError:
    return AdapterError(
        str(path),
        expected="a delta as it was exported",
        found=found,
        remedy="the file was damaged or changed on its way; get it again",
    )
