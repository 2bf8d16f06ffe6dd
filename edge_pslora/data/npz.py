"""Arrays in a .npz file: x (N samples), y (N labels), and labels (names of y's columns) if wanted."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edge_pslora.data.arrays import array_error, check_size, read_elements, samples_of
from edge_pslora.data.npyheader import HeaderError, read_npy_header
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.source import file_status, magic_name, open_input, shown, unpacked_limit
from edge_pslora.data.tally import Part

# What zipfile raises on damaged archives; NotImplementedError is a RuntimeError.
_ZIP_ERRORS = (zipfile.BadZipFile, EOFError, zlib.error, struct.error, RuntimeError, ValueError)
_MAX_NAMES = 1 << 20  # bytes of the array of names


def _check_claims(path: Path, info: zipfile.ZipInfo, limit: int) -> None:
    name = shown(info.filename)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise array_error(path, "members stored or deflated", f"{name} compressed another way")
    packed = min(info.compress_size, file_status(path).st_size)
    if info.file_size > unpacked_limit(packed, limit):
        found = f"{name} of {info.file_size} bytes in {packed}"
        raise array_error(
            path, "data and no bomb", found, "save it with numpy.savez, not compressed"
        )


def _read_array(
    path: Path, archive: zipfile.ZipFile, name: str, limit: int, *, numeric: bool
) -> npt.NDArray[Any]:
    """The member `name`.npy. It ends with its last piece; there zipfile compares the checksum."""
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as member:
        try:
            header = read_npy_header(member)
        except HeaderError as error:
            expected = f"an array of numbers or text in {name}"
            raise array_error(path, expected, str(error)) from error
        _check_claims(path, info, limit)
        check_size(path, shown(info.filename), header, info.file_size - header.offset, limit)
        return read_elements(path, member, name, header, numeric=numeric)


def _load(
    path: Path, stream: BinaryIO, options: ReadOptions
) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any], npt.NDArray[Any] | None]:
    head = stream.read(16)
    stream.seek(0)
    if not head.startswith(b"PK"):
        found = magic_name(head) or "another kind of file"
        raise array_error(path, "a NumPy .npz archive", found)
    try:
        with zipfile.ZipFile(stream) as archive:
            members = archive.namelist()
            if members.count("x.npy") != 1 or members.count("y.npy") != 1:
                found = ", ".join(name.removesuffix(".npy") for name in members[:10])
                raise array_error(path, "one array x and one array y", shown(found) or "no arrays")
            x = _read_array(path, archive, "x", options.max_bytes, numeric=True)
            y = _read_array(path, archive, "y", options.max_bytes, numeric=False)
            names = None
            if members.count("labels.npy") == 1:
                names = _read_array(path, archive, "labels", _MAX_NAMES, numeric=False)
    except _ZIP_ERRORS as error:
        raise array_error(
            path,
            "an undamaged .npz archive",
            shown(str(error)) or "damage",
            "copy or save it again",
        ) from error
    return x, y, names


def read_npz(path: Path, options: ReadOptions) -> Part:
    """Reads x, y and labels as `arrays.samples_of` says.

    Raises:
        DataError: damaged, lying or oversized archives, wrong shapes, too many bad rows.
    """
    with open_input(path) as stream:
        x, y, names = _load(path, stream, options)
    return samples_of(path, x, y, names, options)
