"""Tiles whose element-wise part is one compiled kernel: for GPUs, where every pass costs a launch.

The maths stands in `fused_sums`, an ordinary function of tensors; `fused_tiles` has torch compile it. It
is tried at once on a small tile: a device without a working compiler gets the in-place tiles and a
sentence that says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from edge_pslora.core.stability_tiles import HistoryTile

FUSED_ELEMENTS = 1 << 22  # a GPU wants larger tiles than a cache does: 16 MiB of float32

Pointwise = Callable[
    [torch.Tensor, torch.Tensor, bool, bool], tuple[torch.Tensor, torch.Tensor]
]  # (y, past, coded, squares) -> (slope, sums)


def fused_sums(
    y: torch.Tensor, past: torch.Tensor, coded: bool, squares: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Slope [n, m, in] and sums [n] of a tile, see `stability_tiles`.

    y = 2 a D [n, m, in]; past: codes int8 (coded) or 2 a S, likewise.
    """
    t = past.to(y.dtype) if coded else torch.sigmoid(past) - 0.5
    q = torch.sigmoid(y)
    z = t * y * y if squares else t
    sums = (z * (q - 0.5)).sum((1, 2))
    slope = z * q * (1 - q)
    if squares:
        slope = slope + 2 * t * y * (q - 0.5)
    return slope, sums


@dataclass(frozen=True)
class FusedTiles:
    """A tile engine around `fused_sums` or a compiled form of it."""

    pointwise: Pointwise
    elements: int = FUSED_ELEMENTS

    def __call__(
        self, B: torch.Tensor, Y: torch.Tensor, past: HistoryTile, squares: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        coded = past.codes is not None
        history = torch.bmm(past.left, past.right) if past.codes is None else past.codes
        return self.pointwise(torch.bmm(B, Y), history, coded, squares)


def fused_tiles(
    dtype: torch.dtype,
    device: torch.device | str,
    squares: bool,
    pointwise: Pointwise | None = None,
) -> tuple[FusedTiles | None, str]:
    """Compiled tiles that gave the right result on a small tile, or None and the reason.

    squares: for which of the two sums. pointwise: instead of the compiled function; for tests.
    """
    compiled = pointwise or torch.compile(fused_sums, dynamic=True)
    y = torch.linspace(-3, 3, 24, dtype=dtype, device=device).view(2, 3, 4)
    try:
        expected = fused_sums(y, y.flip(2), False, squares)
        found = compiled(y, y.flip(2), False, squares)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:  # torch._dynamo's exceptions derive from it
        return None, f"the stability loss was not compiled: {str(error).strip().splitlines()[0]}"
    for one, other in zip(found, expected, strict=True):
        if not torch.allclose(one, other, rtol=1e-4, atol=1e-6):
            return None, "the compiled stability loss differs from the plain one"
    return FusedTiles(compiled), ""
