"""The content of one safetensors file, before it is written or after it was read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from edge_pslora.errors import WorkspaceError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Stored:
    """Arrays by name, and text metadata."""

    arrays: Mapping[str, Array]
    metadata: Mapping[str, str] = field(default_factory=dict)


def texts_in(metadata: Mapping[str, str], key: str, where: str) -> list[str]:
    """The list of different texts that a header keeps as JSON; empty where it keeps none.

    Raises:
        WorkspaceError: something else is there.
    """
    try:
        values = json.loads(metadata.get(key, "[]"))
    except (ValueError, RecursionError):
        values = None
    texts = isinstance(values, list) and all(isinstance(value, str) for value in values)
    if not texts or len(set(values)) != len(values):
        raise WorkspaceError(
            where,
            expected=f"a list of different texts in {key}",
            found=ascii(metadata.get(key))[:80],
            remedy="roll back to an earlier generation",
        )
    return list(values)
