"""Safetensors files, tensor by tensor, as numpy arrays: strict to read, durable to write."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_pslora.core.float_bits import bits_of, has_bits, is_finite
from edge_pslora.errors import EdgePsloraError, InputError, WorkspaceError
from edge_pslora.workspace.durable import new_file
from edge_pslora.workspace.reading import open_regular, read_exactly, read_into
from edge_pslora.workspace.tensor_header import (
    DTYPES,
    FLOATS,
    MAX_HEADER,
    Header,
    TensorSpec,
    build_header,
    dtype_code,
    file_order,
    parse_header,
)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TensorFile:
    """An open safetensors file whose header has passed every check; see open_tensors."""

    path: Path
    header: Header
    descriptor: int
    error: type[InputError]

    @property
    def names(self) -> tuple[str, ...]:
        """Names in file order."""
        return tuple(self.header.specs)

    def read(self, name: str, *, finite: bool = False) -> Array:
        """One tensor as a new array in its own dtype (bf16: ml_dtypes.bfloat16).

        Raises:
            error: no such tensor, the file ends early, or (finite=True) NaN or infinity inside.
        """
        spec = self.header.specs.get(name)
        if spec is None:
            raise self.error(
                str(self.path),
                expected=f"a tensor {name}",
                found=f"{len(self.header.specs)} others",
                remedy="use the file that belongs to this model",
            )
        values = np.empty(spec.shape, dtype=DTYPES[spec.dtype])
        self.read_part(name, 0, values.reshape(-1), finite=finite)
        return values

    def read_part(self, name: str, first: int, out: Array, *, finite: bool = False) -> None:
        """Fill `out`, flat, contiguous and of the tensor's dtype, from its entry `first` on.

        Raises:
            error: the file ends early, or (finite=True) NaN or infinity inside.
        """
        raw = out.view(np.uint8)
        offset = self.header.offsets[name] + first * out.itemsize
        read_into(self.descriptor, offset, raw.data, self.path, error=self.error)
        dtype = self.header.specs[name].dtype
        if dtype == "BOOL" and raw.size and int(raw.max()) > 1:
            raise self._damaged(name, "0 or 1 in each byte", "other values")
        if finite and dtype in FLOATS and not all_finite(out):
            raise self._damaged(name, "finite values", "NaN or infinity")

    def part(self, name: str, first: int, count: int) -> Array:
        """At most `count` entries from `first` on, flat; fewer at the tensor's end."""
        spec = self.header.specs[name]
        values = np.empty(min(count, math.prod(spec.shape) - first), DTYPES[spec.dtype])
        self.read_part(name, first, values)
        return values

    def _damaged(self, name: str, expected: str, found: str) -> InputError:
        return self.error(
            f"{self.path}, {name}",
            expected=expected,
            found=found,
            remedy="do not use this file; get it again from its source",
        )


@contextmanager
def open_tensors(
    path: Path, *, max_header: int = MAX_HEADER, error: type[InputError] = WorkspaceError
) -> Iterator[TensorFile]:
    """Open a safetensors file and check its whole header before any tensor is read.

    Args:
        path: the file; links are followed (Hugging Face caches are made of them).
        max_header: bytes of JSON at most.
        error: the class to raise: whose file it is (WorkspaceError, ModelError, AdapterError).
    """
    where = str(path)
    with open_regular(path, error=error) as (descriptor, size):
        if size < 8:
            raise _not_safetensors(where, error, f"{size} bytes")
        length = int.from_bytes(read_exactly(descriptor, 0, 8, path, error=error), "little")
        if length > min(max_header, size - 8):
            found = f"a header length of {length} in {size} bytes"
            raise _not_safetensors(where, error, found)
        text = read_exactly(descriptor, 8, length, path, error=error)
        header = parse_header(text, size - 8 - length, where, error=error)
        yield TensorFile(path, header, descriptor, error)


def read_header(
    path: Path, *, max_header: int = MAX_HEADER, error: type[InputError] = WorkspaceError
) -> Header:
    """The checked header alone."""
    with open_tensors(path, max_header=max_header, error=error) as file:
        return file.header


def read_tensors(
    path: Path,
    *,
    expected: Mapping[str, tuple[int, ...]] | None = None,
    finite: bool = True,
    error: type[InputError] = WorkspaceError,
) -> dict[str, Array]:
    """Every tensor of a (small) file.

    Args:
        expected: if given, exactly these names with exactly these shapes.
        finite: NaN and infinity are an error.
    """
    with open_tensors(path, error=error) as file:
        if expected is not None:
            check_expected(file.header, expected, str(path), error=error)
        return {name: file.read(name, finite=finite) for name in file.names}


def check_expected(
    header: Header,
    expected: Mapping[str, tuple[int, ...]],
    where: str,
    *,
    error: type[InputError] = WorkspaceError,
) -> None:
    """Exactly the `expected` names and shapes, or an `error` that names the first difference."""
    for name in sorted(expected.keys() | header.specs.keys()):
        wanted = expected.get(name)
        spec = header.specs.get(name)
        if wanted is None or spec is None or tuple(wanted) != spec.shape:
            raise error(
                f"{where}, {name}",
                expected="no such tensor" if wanted is None else f"shape {tuple(wanted)}",
                found="no such tensor" if spec is None else f"shape {spec.shape}",
                remedy="use the file that belongs to this model",
            )


def write_tensors(
    path: Path,
    tensors: Mapping[str, Array],
    metadata: Mapping[str, str] | None = None,
    *,
    finite: bool = False,
) -> None:
    """Write a safetensors file durably; equal tensors and metadata give equal bytes.

    Order of insertion, strides and byte order of the arrays do not matter.
    """
    specs = {name: spec_of(array) for name, array in tensors.items()}
    write_tensors_streaming(path, specs, tensors.__getitem__, metadata, finite=finite)


def write_tensors_streaming(
    path: Path,
    specs: Mapping[str, TensorSpec],
    read: Callable[[str], Array],
    metadata: Mapping[str, str] | None = None,
    *,
    finite: bool = False,
) -> None:
    """Like write_tensors, one tensor in memory at a time: `read(name)` is called in file order.

    Raises:
        EdgePsloraError: `read` gives another dtype or shape than its spec, or (finite=True) a
            value that is not finite; nothing is left behind.
    """
    header = build_header(specs, metadata or {})
    with new_file(path) as write:
        write(header)
        for name in file_order(specs):
            array = read(name)
            if spec_of(array) != specs[name]:
                raise EdgePsloraError(
                    f"{path}, {name}",
                    expected=f"{specs[name].dtype} {specs[name].shape}",
                    found=f"{array.dtype} {array.shape}",
                    remedy="this is a defect: report it",
                )
            if finite and specs[name].dtype in FLOATS and not all_finite(array):
                raise EdgePsloraError(
                    f"{path}, {name}",
                    expected="finite values",
                    found="NaN or infinity",
                    remedy="nothing was written; lower the learning rate or check the inputs",
                )
            flat = np.ascontiguousarray(array, dtype=DTYPES[specs[name].dtype]).reshape(-1)
            write(flat.view(np.uint8).data)


def spec_of(array: Array) -> TensorSpec:
    """dtype and shape of an array as a file states them."""
    return TensorSpec(dtype_code(array.dtype), tuple(array.shape))


def all_finite(values: Array) -> bool:
    """Whether no entry of a float array is NaN or infinite; fast where its patterns are ordered."""
    if has_bits(values.dtype) and values.flags.c_contiguous:
        return is_finite(values.reshape(-1), bits_of(values.dtype))
    return bool(np.isfinite(values).all())


def _not_safetensors(where: str, error: type[InputError], found: str) -> InputError:
    return error(
        where,
        expected="a safetensors file",
        found=found,
        remedy="give a .safetensors file; pickled weights (.bin, .pt) are never loaded",
    )
