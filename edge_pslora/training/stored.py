"""The content of one safetensors file, before it is written or after it was read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Stored:
    """Arrays by name, and text metadata."""

    arrays: Mapping[str, Array]
    metadata: Mapping[str, str] = field(default_factory=dict)
