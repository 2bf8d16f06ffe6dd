"""The records of a torch.export file (.pt2): a zip of JSON and raw tensor bytes. No pickle is read.

A .pt2 also holds pickles: the sample inputs always, tensors of a subclass and custom objects where
there are any. The first are never looked at; a file that needs the others is refused.
"""

from __future__ import annotations

import json
import math
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edge_pslora.errors import ModelError
from edge_pslora.models.failures import FOREIGN_ERRORS, first_line
from edge_pslora.workspace.reading import open_regular

SCHEMA_MAJOR = 8  # of torch 2.5 and later
MAX_RECORDS = 100_000
MAX_JSON_BYTES = 32 << 20  # one takes some twenty times as much once it is read
# the numbers that the format gives to the types
DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
STRIDED = 7
_NAME = re.compile(r"[\w.\-]+(/[\w.\-]+)*")
_TENSOR_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


@dataclass(frozen=True)
class Stored:
    """A tensor of the file. key: equal for two names that mean the same memory (tied weights)."""

    tensor: torch.Tensor
    key: tuple[Any, ...]


@dataclass(frozen=True)
class Archive:
    """program: the JSON of the exported program. tensors: weights, buffers and constants by name."""

    program: Mapping[str, Any]
    tensors: Mapping[str, Stored]


def read_archive(path: Path) -> Archive:
    """The one program in the file and its tensors.

    Raises:
        ModelError: not such a file, damaged, hostile, or one that needs a pickle.
    """
    try:
        with (
            open_regular(path, error=ModelError) as (descriptor, size),
            os.fdopen(descriptor, "rb", closefd=False) as stream,
            zipfile.ZipFile(stream) as file,
        ):
            records = _checked(file, path, size)
            return _read(file, records, path)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise bad(path, "a .pt2 file of torch.export.save", first_line(error)) from error
    except FOREIGN_ERRORS as error:
        raise bad(path, "an undamaged .pt2 file", first_line(error)) from error


def bad(
    path: Path, expected: str, found: str, remedy: str = "save it again with torch.export.save"
) -> ModelError:
    return ModelError(str(path), expected=expected, found=found, remedy=remedy)


def _checked(file: zipfile.ZipFile, path: Path, size: int) -> dict[str, zipfile.ZipInfo]:
    """Record name without the common root folder -> its entry."""
    entries = file.infolist()
    names = [entry.filename for entry in entries]
    roots = {name.split("/")[0] for name in names}
    if len(entries) > MAX_RECORDS or len(set(names)) != len(names) or len(roots) != 1:
        raise bad(path, "records with names of their own in one folder", f"{len(names)} records")
    for entry in entries:
        plain = _NAME.fullmatch(entry.filename) and not {"..", "."} & set(entry.filename.split("/"))
        if not plain or entry.is_dir():
            raise bad(path, "plain record names", repr(entry.filename))
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise bad(path, "records that are not compressed", entry.filename)
    if sum(entry.file_size for entry in entries) > size:
        raise bad(path, "records that do not overlap", "more bytes than the file has")
    root = roots.pop() + "/"
    return {entry.filename.removeprefix(root): entry for entry in entries}


def _read(file: zipfile.ZipFile, records: dict[str, zipfile.ZipInfo], path: Path) -> Archive:
    kind = file.read(records["archive_format"]) if "archive_format" in records else b""
    if kind != b"pt2":
        found = "TorchScript or a pickled model" if "data.pkl" in records else "another format"
        raise bad(path, "a .pt2 file of torch.export.save (torch 2.8 or later)", found)
    order = file.read(records["byteorder"]) if "byteorder" in records else b"little"
    programs = [n for n in records if n.startswith("models/") and n.endswith(".json")]
    if order != b"little" or len(programs) != 1:
        compiled = any(name.startswith("data/aotinductor/") for name in records)
        found = "compiled code only" if compiled and not programs else f"{len(programs)} programs"
        raise bad(path, "one exported program, little-endian", found)
    name = programs[0].removeprefix("models/").removesuffix(".json")
    program = _json(file, records, programs[0], path)
    major = program["schema_version"]["major"]
    if major != SCHEMA_MAJOR:
        raise bad(path, f"schema version {SCHEMA_MAJOR}", str(major))
    tensors: dict[str, Stored] = {}
    seen: set[tuple[Any, ...]] = set()
    total, raw = 0, sum(e.file_size for n, e in records.items() if not n.endswith(".json"))
    for folder in ("weights", "constants"):
        if f"data/{folder}/{name}.pt" in records:
            raise bad(path, f"raw {folder}", f"pickled ones in data/{folder}/{name}.pt (old torch)")
        listing = _json(file, records, f"data/{folder}/{name}_{folder}_config.json", path)
        for tensor_name, meta in listing["config"].items():
            if not _TENSOR_NAME.fullmatch(tensor_name) or tensor_name in tensors:
                raise bad(path, "tensor names of letters, digits, '_' and '.'", repr(tensor_name))
            stored = _stored(file, records, folder, tensor_name, meta, path)
            tensors[tensor_name] = stored
            total += 0 if stored.key in seen else stored.tensor.nbytes
            seen.add(stored.key)
            if total > 2 * raw:
                raise bad(path, "tensors of their own bytes", "many views of the same bytes")
    return Archive(program, tensors)


def _json(
    file: zipfile.ZipFile, records: dict[str, zipfile.ZipInfo], name: str, path: Path
) -> dict[str, Any]:
    if name not in records or records[name].file_size > MAX_JSON_BYTES:
        raise bad(path, f"a record {name}", "none" if name not in records else "a giant one")
    try:
        value = json.loads(file.read(records[name]))
    except (ValueError, RecursionError) as error:
        raise bad(path, f"JSON in {name}", first_line(error)) from error
    if not isinstance(value, dict):
        raise bad(path, f"a JSON object in {name}", type(value).__name__)
    return value


def _stored(
    file: zipfile.ZipFile,
    records: dict[str, zipfile.ZipInfo],
    folder: str,
    name: str,
    meta: dict[str, Any],
    path: Path,
) -> Stored:
    record, layout = f"data/{folder}/{meta['path_name']}", meta["tensor_meta"]
    raw_prefix = "weight_" if folder == "weights" else "tensor_"
    if meta["use_pickle"] is not False or not meta["path_name"].startswith(raw_prefix):
        found = f"{name}, which is pickled in {record}"
        remedy = "pickles are never loaded: export the model with plain tensors only"
        raise bad(path, "raw bytes for every tensor", found, remedy)
    if layout["dtype"] not in DTYPES or layout["layout"] != STRIDED or record not in records:
        raise bad(path, f"{name} as a dense tensor", f"dtype {layout['dtype']} in {record}")
    dtype = DTYPES[layout["dtype"]]
    sizes, strides = ([_size(n) for n in layout[key]] for key in ("sizes", "strides"))
    offset = _size(layout["storage_offset"])
    count = records[record].file_size // dtype.itemsize
    empty = 0 in sizes
    last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    if not empty and max(last + 1, math.prod(sizes)) > count:
        raise bad(
            path, f"{max(last + 1, math.prod(sizes))} values for {name}", f"{count} in {record}"
        )
    key = (record, offset, *sizes, *strides)
    if empty:
        return Stored(torch.empty(sizes, dtype=dtype), (name,))
    raw = bytearray(file.read(records[record]))
    flat = torch.frombuffer(raw, dtype=dtype, count=count)
    # as_strided stays within the bytes: checked above
    return Stored(flat.as_strided(sizes, strides, offset).clone().contiguous(), key)


def _size(value: dict[str, Any]) -> int:
    number = value["as_int"]
    if type(number) is not int or number < 0:
        raise ValueError(f"{number!r} is no size")
    return number
