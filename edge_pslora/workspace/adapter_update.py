"""The update s B A of one adapted module, a tile at a time: no factor and no product is held whole.

A weight is seen as a matrix [rows, columns]: its first dimension by all the others, as its entries
lie in the file. The update of that matrix is B A, or (B A)^T for embeddings and fan_in_fan_out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_pslora.workspace.adapter_folder import LoraModule
from edge_pslora.workspace.tensor_header import DTYPES
from edge_pslora.workspace.tensors import TensorFile

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Tile:
    """Entries that follow each other in the file: whole rows, or a piece of one row.

    first: position of its first entry in the tensor.
    """

    row: int
    column: int
    height: int
    width: int
    first: int

    @property
    def size(self) -> int:
        return self.height * self.width


def tiles(shape: tuple[int, ...], limit: int) -> Iterator[Tile]:
    """The tensor in file order, in tiles of at most `limit` entries; they depend on nothing else."""
    rows, columns = shape[0], math.prod(shape[1:])
    width = min(columns, limit)
    height = max(1, limit // columns) if columns else 1
    for row in range(0, rows, height):
        for column in range(0, columns, max(width, 1)):
            yield Tile(
                row,
                column,
                min(height, rows - row),
                min(width, columns - column),
                row * columns + column,
            )


def update_part(
    file: TensorFile, module: LoraModule, shape: tuple[int, ...], tile: Tile, out: Array
) -> None:
    """out [tile.size] <- s B A of a weight of this shape there (see check_fits), in out's dtype.

    Raises:
        AdapterError: factors that are not finite. What overflows is infinite or NaN in `out`.
    """
    if module.transposes(len(shape)):
        left = _columns(file, module.a_key, module.rank, tile.row, tile.height, out.dtype).T
        right = _rows(file, module.b_key, module.rank, tile.column, tile.width, out.dtype).T
    else:
        left = _rows(file, module.b_key, module.rank, tile.row, tile.height, out.dtype)
        right = _columns(file, module.a_key, module.rank, tile.column, tile.width, out.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = left * out.dtype.type(module.scaling)
        np.matmul(scaled, right, out=out.reshape(tile.height, tile.width))


def _rows(
    file: TensorFile, key: str, rank: int, first: int, count: int, dtype: np.dtype[Any]
) -> Array:
    """[count, rank]: rows of a factor stored as [n, rank]."""
    part = np.empty(count * rank, DTYPES[file.header.specs[key].dtype])
    file.read_part(key, first * rank, part, finite=True)
    return part.astype(dtype, copy=False).reshape(count, rank)


def _columns(
    file: TensorFile, key: str, rank: int, first: int, count: int, dtype: np.dtype[Any]
) -> Array:
    """[rank, count]: columns of a factor stored as [rank, n]."""
    spec = file.header.specs[key]
    stored = math.prod(spec.shape[1:])
    part = np.empty((rank, count), DTYPES[spec.dtype])
    if count == stored:
        file.read_part(key, 0, part.reshape(-1), finite=True)
    else:
        for row in range(rank):
            file.read_part(key, row * stored + first, part[row], finite=True)
    return part.astype(dtype, copy=False)
