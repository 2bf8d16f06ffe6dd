"""Weights in several safetensors files and an index: read as the one file they would have been."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_pslora.errors import ModelError
from edge_pslora.models.weights_header import WEIGHTS_FILE
from edge_pslora.workspace.reading import open_regular, read_exactly, read_limited
from edge_pslora.workspace.tensors import read_header

INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
CHUNK = 4 << 20
_MAX_INDEX = 64 << 20
_SHARD = re.compile(r"[A-Za-z0-9_.\-]{1,200}\.safetensors")


@dataclass(frozen=True)
class _Piece:
    """One tensor's bytes: [first, first + size) of a shard."""

    shard: Path
    first: int
    size: int
    entry: dict[str, Any]


def has_shards(folder: Path) -> bool:
    """Whether the folder's weights lie in shards, and not in one file."""
    return (folder / INDEX_FILE).is_file() and not (folder / WEIGHTS_FILE).is_file()


def shard_files(folder: Path) -> list[Path]:
    """The shards that the index names, each checked against it.

    Raises:
        ModelError: the index or a shard is missing or damaged, or they disagree.
    """
    return sorted({piece.shard for piece in _pieces(folder).values()})


def write_merged(folder: Path, target: Path) -> None:
    """One file with every tensor of the shards, a few MiB in memory at a time; not synchronised.

    Raises:
        ModelError: the index or a shard is missing or damaged, or they disagree.
    """
    with target.open("wb") as file:
        for part in _merged(folder):
            file.write(part)


def merged_sha256(folder: Path) -> str:
    """The sha256 of the file that `write_merged` writes."""
    digest = hashlib.sha256()
    for part in _merged(folder):
        digest.update(part)
    return digest.hexdigest()


def _merged(folder: Path) -> Iterator[bytes]:
    """The bytes of the merged file: tensors by name, so that the shards' order does not matter."""
    pieces = _pieces(folder)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(pieces):
        end = offset + pieces[name].size
        header[name] = pieces[name].entry | {"data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in sorted(pieces):
        piece = pieces[name]
        with open_regular(piece.shard, error=ModelError) as (descriptor, _):
            end = piece.first + piece.size
            for at in range(piece.first, end, CHUNK):
                size = min(CHUNK, end - at)
                yield read_exactly(descriptor, at, size, piece.shard, error=ModelError)


def _pieces(folder: Path) -> dict[str, _Piece]:
    index = folder / INDEX_FILE
    try:
        data = read_limited(index, _MAX_INDEX, error=ModelError)
        places = json.loads(data.decode("utf-8"))["weight_map"]
        listed = {str(name): str(places[name]) for name in places}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _bad(index, "a weight_map in JSON", str(error) or type(error).__name__) from error
    pieces: dict[str, _Piece] = {}
    for shard in sorted(set(listed.values())):
        if not _SHARD.fullmatch(shard):
            raise _bad(index, "names of files in the same folder", repr(shard))
        path = folder / shard
        if not path.is_file():
            raise _bad(path, "every shard of the index", "no such file")
        header = read_header(path, error=ModelError)
        for name, spec in header.specs.items():
            if listed.get(name) != shard:
                raise _bad(path, f"the tensors that {INDEX_FILE} lists", f"{name} as well")
            entry = {"dtype": spec.dtype, "shape": list(spec.shape)}
            pieces[name] = _Piece(path, header.offsets[name], spec.bytes, entry)
    missing = sorted(listed.keys() - pieces.keys())
    if missing:
        raise _bad(folder / listed[missing[0]], missing[0], "no such tensor")
    return pieces


def _bad(where: Path, expected: str, found: str) -> ModelError:
    return ModelError(
        str(where),
        expected=expected,
        found=found,
        remedy="save the model again with model.save_pretrained(folder)",
    )
