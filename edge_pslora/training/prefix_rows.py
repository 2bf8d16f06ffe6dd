"""The forms in which a sample's row of the prefix is kept: what it computed, bf16 or one byte a number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from edge_pslora.training.plan import UsedPrefix

FORMS: tuple[UsedPrefix, ...] = ("exact", "bf16", "int8")
_BYTES = {"exact": 4, "bf16": 2, "int8": 1}
LEVELS = 127


def row_bytes(form: UsedPrefix, shape: Sequence[int]) -> int:
    """shape: of one sample, [R, ...]. int8 has a float32 scale for each of R positions or channels, and
    one for a vector."""
    return _BYTES[form] * math.prod(shape) + (4 * _scales(shape) if form == "int8" else 0)


def _scales(shape: Sequence[int]) -> int:
    return shape[0] if len(shape) > 1 else 1


def encode(form: UsedPrefix, row: torch.Tensor) -> bytes:
    """row: float32 [R, ...]. bf16 rounds to nearest, an error of at most 2^-9 of each number; int8 to the
    nearest of 255 levels, an error of at most 1/254 of the largest at its position or channel."""
    row = row.detach().contiguous()
    if form == "exact":
        return row.numpy().tobytes()
    if form == "bf16":
        return row.bfloat16().view(torch.int16).numpy().tobytes()
    flat = row.reshape(_scales(row.shape), -1)
    scale = flat.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny * LEVELS) / LEVELS
    levels = (flat / scale[:, None]).round().clamp(-LEVELS, LEVELS).to(torch.int8)
    return scale.numpy().tobytes() + levels.numpy().tobytes()


def decode(form: UsedPrefix, data: bytes, shape: Sequence[int]) -> torch.Tensor:
    """The inverse: float32 [R, ...], in bf16 where that is its form."""
    if form == "exact":
        return torch.from_numpy(np.frombuffer(bytearray(data), np.float32).reshape(shape))
    if form == "bf16":
        numbers = torch.from_numpy(np.frombuffer(bytearray(data), np.int16).reshape(shape))
        return numbers.view(torch.bfloat16)
    start = 4 * _scales(shape)
    scale = torch.from_numpy(np.frombuffer(bytearray(data[:start]), np.float32))
    levels = torch.from_numpy(np.frombuffer(bytearray(data[start:]), np.int8))
    return (levels.reshape(len(scale), -1).float() * scale[:, None]).reshape(tuple(shape))
