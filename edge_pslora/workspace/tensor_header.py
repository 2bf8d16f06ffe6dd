"""The safetensors header, read strictly and written deterministically (format: its README).

A file is: uint64 little-endian length n, n bytes of JSON, the tensors' bytes without a gap.
The safetensors library accepts repeated names, NUL and '../' in names; this module does not.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from edge_pslora.errors import EdgePsloraError, InputError, WorkspaceError
from edge_pslora.workspace import strict_json

MAX_HEADER = 1 << 20
METADATA = "__metadata__"

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_NAME = re.compile(r"[A-Za-z0-9_.]{1,512}")


@dataclass(frozen=True)
class TensorSpec:
    """dtype: a key of DTYPES; shape: () for a scalar."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Header:
    """specs: by name, in file order; offsets: first byte of each tensor, from the file's start."""

    specs: dict[str, TensorSpec]
    offsets: dict[str, int]
    metadata: dict[str, str] = field(default_factory=dict)
    file_bytes: int = 0


def dtype_code(dtype: np.dtype[Any]) -> str:
    """'F32' for float32, ...; byte order is ignored (files are little-endian)."""
    code = _CODES.get(dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype)
    if code is None:
        raise EdgePsloraError(
            "tensor",
            expected=f"one of {', '.join(DTYPES)}",
            found=str(dtype),
            remedy="convert the array before it is stored",
        )
    return code


def file_order(specs: Mapping[str, TensorSpec]) -> list[str]:
    """Widest dtype first, then by name: deterministic, and every tensor is aligned to its dtype."""
    return sorted(specs, key=lambda name: (-DTYPES[specs[name].dtype].itemsize, name))


def build_header(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON, padded with spaces to a multiple of 8; equal input gives equal bytes."""
    content: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in file_order(specs):
        if not _NAME.fullmatch(name) or name == METADATA:
            raise EdgePsloraError(
                f"tensor {name!r}",
                expected="a name of letters, digits, '_' and '.'",
                found=repr(name),
                remedy="rename the module",
            )
        spec = specs[name]
        content[name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.bytes],
        }
        offset += spec.bytes
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def parse_header(
    text: bytes, data_bytes: int, where: str, *, error: type[InputError] = WorkspaceError
) -> Header:
    """Check every claim of the JSON `text` against the `data_bytes` that follow it.

    Raises:
        error: an unknown dtype, a bad name, shape or offset, an overlap, a hole, a wrong end.
    """
    if not text.startswith(b"{"):
        raise _bad(error, where, "a JSON header", "something else")
    content = strict_json.parse(text, where, error=error)
    metadata = content.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _bad(error, where, "metadata from text to text", "other values")
    first = 8 + len(text)
    spans: list[tuple[int, int, str, TensorSpec]] = []
    for name, entry in content.items():
        spans.append(_entry(name, entry, where, error))
    position = 0
    spans.sort(key=lambda span: span[:3])
    for start, end, name, _spec in spans:
        if start != position:
            kind = "an overlap" if start < position else "a hole"
            raise _bad(error, f"{where}, {name}", f"data at {position}", f"{kind}: {start}")
        position = end
    if position != data_bytes:
        raise _bad(error, where, f"{position} bytes of tensors", f"{data_bytes} bytes")
    return Header(
        specs={name: spec for _, _, name, spec in spans},
        offsets={name: first + start for start, _, name, _ in spans},
        metadata=metadata,
        file_bytes=first + data_bytes,
    )


def _entry(
    name: str, entry: Any, where: str, error: type[InputError]
) -> tuple[int, int, str, TensorSpec]:
    """(start, end, name, spec) of one tensor, each checked for itself."""
    if not _NAME.fullmatch(name):
        raise _bad(error, where, "names of letters, digits, '_' and '.'", ascii(name[:80]))
    at = f"{where}, {name}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _bad(error, at, "dtype, shape and data_offsets", "other fields")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _bad(error, at, f"dtype one of {', '.join(DTYPES)}", repr(dtype))
    if not _is_counts(shape) or len(shape) > 16:
        raise _bad(error, at, "a shape of at most 16 whole numbers", repr(shape))
    if not _is_counts(offsets) or len(offsets) != 2:
        raise _bad(error, at, "two offsets", repr(offsets))
    spec = TensorSpec(dtype, tuple(shape))
    if offsets[1] - offsets[0] != spec.bytes:
        raise _bad(error, at, f"{spec.bytes} bytes for {dtype} {shape}", f"offsets {offsets}")
    return offsets[0], offsets[1], name, spec


def _is_counts(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 2**48 for value in values
    )


def _bad(error: type[InputError], where: str, expected: str, found: str) -> InputError:
    return error(
        where,
        expected=expected,
        found=found,
        remedy="the safetensors file is damaged or hostile; get it again from its source",
    )
