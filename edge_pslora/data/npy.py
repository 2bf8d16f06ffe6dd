"""Arrays in two .npy files: the samples in one, the labels in one beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy.typing as npt

from edge_pslora.data.arrays import array_error, check_size, read_elements, samples_of
from edge_pslora.data.npyheader import HeaderError, read_npy_header
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.source import file_status, magic_name, open_input, shown
from edge_pslora.data.tally import Part
from edge_pslora.errors import DataError


def label_files(path: Path) -> list[Path]:
    """Where the labels of the samples in `path` may be: y for x, NAME_y or NAME_labels for NAME."""
    stem = path.stem
    names = [f"{stem}_y", f"{stem}_labels"]
    if stem == "x":
        names.insert(0, "y")
    elif stem.endswith("_x"):
        names.insert(0, stem.removesuffix("_x") + "_y")
    return [path.with_name(name + path.suffix) for name in names]


def _read(path: Path, options: ReadOptions, *, numeric: bool) -> npt.NDArray[Any]:
    with open_input(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        head = stream.read(16)
        stream.seek(0)
        try:
            header = read_npy_header(stream)
        except HeaderError as error:
            found = str(error)
            if not head.startswith(b"\x93NUMPY"):
                found = magic_name(head) or found
            remedy = "save it with numpy.save(path, array)"
            raise array_error(path, "an array of numbers or text", found, remedy) from error
        check_size(path, shown(path.name), header, size - header.offset, options.max_bytes)
        return read_elements(path, stream, shown(path.name), header, numeric=numeric)


def read_npy(path: Path, options: ReadOptions) -> Part:
    """Reads the samples in `path` and the labels in the file beside it, as `arrays.samples_of` says.

    Raises:
        DataError: no file of labels, damage, wrong shapes, too many bad rows.
    """
    file_status(path)
    beside = [file for file in label_files(path) if os.path.lexists(file)]
    if not beside:
        raise DataError(
            shown(path),
            expected="its labels beside it, in " + " or ".join(f.name for f in label_files(path)),
            found="no such file",
            remedy="save them there, or both arrays with numpy.savez(path, x=..., y=...)",
        )
    x = _read(path, options, numeric=True)
    y = _read(beside[0], options, numeric=False)
    part = samples_of(path, x, y, None, options)
    return Part(part.samples, part.rejected, (*part.notes, f"labels from {shown(beside[0].name)}"))
