"""Writes what replay_plan settled: adapted weights tile by tile, all other tensors by the kernel.

Memory: three tiles of _TILE entries (or of one row), the factors of one weight, scratch of
the size of a cache. No result depends on the tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_pslora.core.replay import advance_into, update_into
from edge_pslora.errors import AdapterError, EdgePsloraError, InputError, WorkspaceError
from edge_pslora.update.delta_file import DeltaFile, LayerPlace
from edge_pslora.update.replay_plan import Plan, Span, entries, pieces
from edge_pslora.workspace.reading import FileDigest, Hash, digest_open
from edge_pslora.workspace.tensor_header import DTYPES, FLOATS
from edge_pslora.workspace.tensors import TensorFile, all_finite

Array = npt.NDArray[Any]
_TILE = 1 << 17


class Sink(Protocol):
    """What takes the result: a file in the making (durable.Append), or a Digester."""

    def __call__(self, data: bytes | memoryview) -> None: ...

    def copy(
        self,
        source: int,
        offset: int,
        length: int,
        path: Path,
        *,
        error: type[InputError] = WorkspaceError,
    ) -> None: ...


@dataclass
class Digester:
    """Takes a result and keeps its length and sha256 alone."""

    hash: Hash
    length: int = 0

    def __call__(self, data: bytes | memoryview) -> None:
        self.hash.update(data)
        self.length += len(data)

    def copy(
        self,
        source: int,
        offset: int,
        length: int,
        path: Path,
        *,
        error: type[InputError] = WorkspaceError,
    ) -> None:
        digest_open(source, offset, offset + length, path, self.hash, error=error)
        self.length += length

    def digest(self) -> FileDigest:
        return FileDigest(self.length, self.hash.hexdigest())


def write_plan(plan: Plan, opened: DeltaFile, sink: Sink) -> None:
    """Every byte of the result.

    Raises:
        AdapterError: a value that is not finite.
        ModelError: a file that changed while it was read.
    """
    _check_new(opened)
    sink(plan.header)
    for piece in pieces(plan, opened):
        if isinstance(piece, Span):
            file = piece.file
            sink.copy(file.descriptor, piece.offset, piece.length, file.path, error=file.error)
        elif isinstance(piece, LayerPlace):
            _write_layer(piece, plan, opened, sink)
        else:
            for first in range(0, entries(plan.specs[piece.name]), _TILE):
                sink(_bytes(_floats(plan.parent, piece.name, first, _TILE)))


def _write_layer(place: LayerPlace, plan: Plan, opened: DeltaFile, sink: Sink) -> None:
    """W_t of one weight, some whole rows at a time."""
    delta, name = opened.delta, place.layer.name
    rows, columns = place.rows, place.columns
    tall, wide = opened.factors(place)
    height = max(1, _TILE // max(1, columns))
    update = np.empty((min(height, rows), columns), np.float32)
    result = np.empty_like(update)
    for row in range(0, rows, height):
        left = tall[row : row + height]
        d, out = update[: len(left)], result[: len(left)]
        update_into(d, left, wide, delta.scaling)
        base = _floats(plan.base, name, row * columns, d.size).reshape(d.shape)
        previous = base
        if plan.parent is not plan.base:
            previous = _floats(plan.parent, name, row * columns, d.size).reshape(d.shape)
        try:
            advance_into(out, delta.rule, base, previous, d, delta.session)
        except EdgePsloraError as problem:
            raise _not_finite(opened, name) from problem
        if not all_finite(out):
            raise _not_finite(opened, name)
        sink(_bytes(out))


def _floats(file: TensorFile, name: str, first: int, count: int) -> Array:
    """Some entries of a tensor in float32, flat; fewer at its end."""
    with np.errstate(over="ignore", invalid="ignore"):
        return file.part(name, first, count).astype(np.float32, copy=False)


def _check_new(opened: DeltaFile) -> None:
    """Tensors that the delta brings are finite; they are then copied as they are."""
    file = opened.file
    for key, spec in file.header.specs.items():
        for first in range(0, entries(spec) if spec.dtype in FLOATS else 0, _TILE):
            part = np.empty(min(_TILE, entries(spec) - first), DTYPES[spec.dtype])
            file.read_part(key, first, part, finite=True)


def _bytes(values: Array) -> memoryview:
    data: memoryview = values.reshape(-1).view(np.uint8).data
    return data


def _not_finite(opened: DeltaFile, name: str) -> AdapterError:
    return AdapterError(
        f"{opened.file.path}, {name}",
        expected="finite values",
        found="an update that overflows or is not finite",
        remedy="nothing was written; get the whole model instead",
    )
