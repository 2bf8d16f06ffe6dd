"""Arrays in a .npz file: x (N samples) and y (N labels)."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edge_pslora.data.labels import RawLabel, label_problem, resolve, unprintable
from edge_pslora.data.npyheader import HeaderError, NpyHeader, read_npy_header
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.source import magic_name, open_input, shown
from edge_pslora.data.tally import Part, Tally
from edge_pslora.data.types import Samples
from edge_pslora.errors import DataError

_CHUNK = 1 << 20
# Deflate cannot shrink further than about 1032 to 1 (zlib's documentation), so more is a lie.
_DEFLATE_RATIO = 1032
# What zipfile raises on damaged archives; NotImplementedError is a RuntimeError.
_ZIP_ERRORS = (zipfile.BadZipFile, EOFError, zlib.error, struct.error, RuntimeError, ValueError)
_SAVE = "save it with numpy.savez(path, x=..., y=...)"


def _error(path: Path, expected: str, found: str, remedy: str = _SAVE) -> DataError:
    return DataError(shown(path), expected=expected, found=found, remedy=remedy)


def _check_claims(path: Path, info: zipfile.ZipInfo, header: NpyHeader, limit: int) -> None:
    """Holds the header against the member's real size before anything is allocated."""
    name = shown(info.filename)
    data_bytes = info.file_size - header.offset
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _error(path, "members stored or deflated", f"{name} compressed another way")
    if info.file_size > _DEFLATE_RATIO * info.compress_size + 1024:
        raise _error(path, "true sizes", f"{name} claims {info.file_size} bytes", "save it again")
    if header.nbytes != data_bytes:
        found = f"a header of {name} that asks for {header.nbytes} bytes over {data_bytes}"
        raise _error(path, "an array as large as its header says", found, "save it again")
    # Numbers become float32, so one byte can turn into four.
    if max(header.nbytes, 4 * math.prod(header.shape)) > limit:
        remedy = "split the file, or raise max_bytes"
        raise _error(path, f"at most {limit} bytes in memory", f"{header.nbytes} in {name}", remedy)


def _read_array(
    path: Path, archive: zipfile.ZipFile, name: str, limit: int, *, numeric: bool
) -> npt.NDArray[Any]:
    """The member `name`.npy; as float32 where `numeric`, converted piece by piece."""
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as member:
        try:
            header = read_npy_header(member)
        except HeaderError as error:
            raise _error(path, f"an array of numbers or text in {name}", str(error)) from error
        if numeric and header.dtype.kind in "SU":
            raise _error(path, f"numbers in {name}", "text")
        _check_claims(path, info, header, limit)
        count, step = math.prod(header.shape), max(1, _CHUNK // header.dtype.itemsize)
        flat = np.empty(count, dtype=np.float32 if numeric else header.dtype)
        # The member ends with the last piece; there zipfile compares the checksum.
        for begin in range(0, count, step):
            wanted = min(step, count - begin) * header.dtype.itemsize
            piece = member.read(wanted)
            if len(piece) != wanted:
                raise _error(path, f"{count} elements in {name}", "fewer", "save it again")
            with np.errstate(over="ignore", invalid="ignore"):
                flat[begin : begin + step] = np.frombuffer(piece, dtype=header.dtype)
    if header.fortran_order:
        return np.ascontiguousarray(flat.reshape(header.shape[::-1]).T)
    return flat.reshape(header.shape)


def _raw_labels(y: npt.NDArray[Any]) -> list[RawLabel | None]:
    """N labels; None for bytes or code points that are no text."""
    if y.dtype.kind == "S":
        return [_decoded(item) for item in y.tolist()]
    if y.dtype.kind != "U":
        return list(y.tolist())
    # tolist() raises on code points beyond Unicode, so they are looked for first.
    order = y.dtype.byteorder
    codes = np.ascontiguousarray(y).view(np.dtype(np.uint32).newbyteorder(order))
    good = np.all(codes.reshape(len(y), -1) <= 0x10FFFF, axis=1)
    return [str(y[i]) if good[i] else None for i in range(len(y))]


def _decoded(item: bytes) -> str | None:
    try:
        return item.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _load(
    path: Path, stream: BinaryIO, options: ReadOptions
) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
    head = stream.read(16)
    stream.seek(0)
    if not head.startswith(b"PK"):
        raise _error(path, "a NumPy .npz archive", magic_name(head) or "another kind of file")
    try:
        with zipfile.ZipFile(stream) as archive:
            names = archive.namelist()
            if names.count("x.npy") != 1 or names.count("y.npy") != 1:
                found = ", ".join(name.removesuffix(".npy") for name in names[:10])
                raise _error(path, "one array x and one array y", shown(found) or "no arrays")
            x = _read_array(path, archive, "x", options.max_bytes, numeric=True)
            y = _read_array(path, archive, "y", options.max_bytes, numeric=False)
    except _ZIP_ERRORS as error:
        raise _error(
            path,
            "an undamaged .npz archive",
            shown(str(error)) or "damage",
            "copy or save it again",
        ) from error
    return x, y


def read_npz(path: Path, options: ReadOptions) -> Part:
    """Reads x [N, ...] and y [N] or [N, 1]. A two-dimensional x is a table (NaN = missing), more
    dimensions are an array, in which every number must be finite.

    Raises:
        DataError: damaged, lying or oversized archives, wrong shapes, too many bad rows.
    """
    with open_input(path) as stream:
        x, y = _load(path, stream, options)
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise _error(path, "x of shape [N, features ...]", f"x of shape {list(x.shape)}")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise _error(path, "y of shape [N]", f"y of shape {list(y.shape)}", "give one label a row")
    if len(x) != len(y):
        raise _error(path, "as many rows in x as in y", f"{len(x)} and {len(y)}")
    table = x.ndim == 2
    if table:
        for code in options.missing:
            x[x == np.float32(code)] = np.nan
    rows = x.reshape(len(x), math.prod(x.shape[1:]))
    finite = np.all(~np.isinf(rows) if table else np.isfinite(rows), axis=1)
    name, tally = shown(path.name), Tally(shown(path), options)
    kept: list[int] = []
    labels: list[RawLabel] = []
    for row, label in enumerate(_raw_labels(y)):
        if label is None:
            problem: str | None = "a label that is no text"
        else:
            text_problem = unprintable(label) if isinstance(label, str) else None
            problem = text_problem or label_problem(label)
        if not finite[row]:
            problem = "a number that is not finite"
        if problem is not None or label is None:
            tally.reject(row, f"{name}: row {row}", problem or "no label")
            continue
        kept.append(row)
        labels.append(label)
    if not labels:
        raise tally.no_rows()
    # Numbers stored as floats, in a table, may be a quantity; stored as integers they are classes.
    quantity = table and y.dtype.kind == "f"
    targets = resolve(labels, options, shown(path), table=quantity)
    for position, reason in targets.dropped:
        tally.reject(kept[position], f"{name}: row {kept[position]}", reason)
    indices = np.array(kept, dtype=np.int64)[targets.kept]
    inputs = x if len(indices) == len(x) else x[indices]
    samples = Samples("table" if table else "array", targets.task_type, inputs, targets.values)
    return Part(samples, tally.close(len(samples)))
