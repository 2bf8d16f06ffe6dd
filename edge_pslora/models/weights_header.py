"""The header of a safetensors file that a user gave: checked before anything else reads it. No torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from edge_pslora.errors import ModelError

WEIGHTS_FILE = "model.safetensors"
MAX_HEADER_BYTES = 16 * 1024 * 1024


def read_safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """(the header, position of the first byte of data).

    Checks what the safetensors library lets pass: a giant header and a name that occurs twice.

    Raises:
        ModelError: no header, or a damaged one.
    """
    with path.open("rb") as file:
        prefix = file.read(8)
        size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= size <= MAX_HEADER_BYTES:
            raise bad_weights(path, "no safetensors header")
        raw = file.read(size)
    try:
        header = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise bad_weights(path, f"a damaged header ({error})") from error
    if not isinstance(header, dict):
        raise bad_weights(path, "a damaged header")
    return header, 8 + size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def bad_weights(path: Path, found: str) -> ModelError:
    """The error of a weights file that cannot be used."""
    return ModelError(
        str(path),
        expected="a safetensors file with finite weights",
        found=found,
        remedy="give a .safetensors file",
    )
