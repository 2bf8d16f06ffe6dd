"""Frozen float32 weights as bf16 for a while, and back to the bit, without a second copy of them.

A float32 number is 32 bits; bf16 is its upper half. The halves are kept apart: together they are as large
as the weight was. Rounding to the nearest bf16 adds one to the upper half where the lower one is at
least a half of its unit, so that the lower half says whether it was done, and it can be taken back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from edge_pslora.training.norms import is_norm

_HALF = 1 << 15
_PART = (
    1 << 20
)  # numbers at a time: what lies between would take three times a large table's memory


def halvable(model: nn.Module) -> list[nn.Parameter]:
    """Frozen float32 parameters outside of norms, whose statistics want their digits.

    Those that share memory under several names of their own are left alone: they would part.
    """
    norms = {id(p) for m in model.modules() if is_norm(m) for p in m.parameters(recurse=False)}
    found = [
        p
        for p in model.parameters()
        if p.dtype == torch.float32 and not p.requires_grad and id(p) not in norms
    ]
    storages = [p.untyped_storage().data_ptr() for p in found]
    return [p for p, s in zip(found, storages, strict=True) if storages.count(s) == 1]


def split(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight rounded to bf16 (ties away from zero), and int16: what `joined` needs besides."""
    bits = weight.contiguous().view(torch.int32)
    low = bits.to(torch.int16)  # keeps the lower 16 bits
    upper = torch.empty_like(low)
    for part, of in zip(_parts(upper), _parts(bits), strict=True):
        part.copy_((of + _HALF) >> 16)
    return upper.view(torch.bfloat16), low


def joined(upper: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """The float32 weight that `split` was given, to the bit."""
    bits = torch.empty(low.shape, dtype=torch.int32, device=low.device)
    uppers = upper.contiguous().view(torch.int16)
    for high, rest, part in zip(_parts(uppers), _parts(low), _parts(bits), strict=True):
        # a lower half of 2^15 or more is negative as int16: there the upper one was raised
        raised = high.to(torch.int32) - (rest < 0).to(torch.int32)
        part.copy_((raised << 16) | (rest.to(torch.int32) & 0xFFFF))
    return bits.view(torch.float32)


def _parts(numbers: torch.Tensor) -> list[torch.Tensor]:
    """Views of its numbers in order, _PART at a time; it is contiguous."""
    flat = numbers.view(-1)
    return [flat[start : start + _PART] for start in range(0, len(flat), _PART)]


@contextmanager
def halved(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within the block the parameters are bf16, kernels of convolutions with channels last.

    Afterwards they have their bits again; a change made to them within would be lost.
    """
    lows: list[tuple[nn.Parameter, torch.Tensor]] = []
    try:
        for parameter in parameters:
            upper, low = split(parameter.detach())
            lows.append((parameter, low))
            if upper.dim() == 4:
                upper = upper.contiguous(memory_format=torch.channels_last)
            parameter.data = upper
        yield
    finally:
        for parameter, low in lows:
            parameter.data = joined(parameter.detach(), low)
