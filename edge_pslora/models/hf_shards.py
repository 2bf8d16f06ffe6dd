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
from edge_pslora.models.weights_header import WEIGHTS_FILE, read_safetensors_header

INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
CHUNK = 4 << 20
_SHARD = re.compile(r"[\w.\-]+\.safetensors")


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
        with piece.shard.open("rb") as file:
            file.seek(piece.first)
            left = piece.size
            while left:
                part = file.read(min(CHUNK, left))
                if not part:
                    raise _bad(piece.shard, "a complete shard", "its end within a tensor")
                left -= len(part)
                yield part


def _pieces(folder: Path) -> dict[str, _Piece]:
    index = folder / INDEX_FILE
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        listed = {str(name): str(places[name]) for name in places}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _bad(index, "a weight_map in JSON", str(error) or type(error).__name__) from error
    pieces: dict[str, _Piece] = {}
    for shard in sorted(set(listed.values())):
        if not _SHARD.fullmatch(shard):
            raise _bad(index, "names of files in the same folder", repr(shard))
        path = folder / shard
        if not path.is_file():
            raise _bad(path, "every shard of the index", "no such file")
        header, first = read_safetensors_header(path)
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if listed.get(name) != shard:
                raise _bad(path, f"the tensors that {INDEX_FILE} lists", f"{name} as well")
            pieces[name] = _piece(path, first, name, entry)
    missing = sorted(listed.keys() - pieces.keys())
    if missing:
        raise _bad(folder / listed[missing[0]], missing[0], "no such tensor")
    return pieces


def _piece(path: Path, first: int, name: str, entry: Any) -> _Piece:
    try:
        begin, end = entry["data_offsets"]
        kept = {"dtype": entry["dtype"], "shape": entry["shape"]}
        sizes = type(begin) is int and type(end) is int and 0 <= begin <= end
    except (KeyError, TypeError, ValueError) as error:
        raise _bad(path, f"a tensor entry for {name}", str(error)) from error
    if not sizes:
        raise _bad(path, f"offsets of {name}", f"{begin}, {end}")
    return _Piece(path, first + begin, end - begin, kept)


def _bad(where: Path, expected: str, found: str) -> ModelError:
    return ModelError(
        str(where),
        expected=expected,
        found=found,
        remedy="save the model again with model.save_pretrained(folder)",
    )
