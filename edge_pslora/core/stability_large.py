"""Tiles for a GPU, where every pass costs a launch and memory is wide: large ones, in few passes.

Compiled into one kernel they take as long (docs/ENGINE.md), and the compiler takes ten seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edge_pslora.core.stability_tiles import HistoryTile

LARGE_ELEMENTS = 1 << 22  # 16 MiB of float32, where a CPU's tile is as large as its cache


@dataclass(frozen=True)
class LargeTiles:
    """A tile engine that allocates what it needs."""

    elements: int = LARGE_ELEMENTS

    def __call__(
        self, B: torch.Tensor, Y: torch.Tensor, past: HistoryTile, squares: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.bmm(B, Y)
        if past.codes is None:
            t = torch.sigmoid(torch.bmm(past.left, past.right)) - 0.5
        else:
            t = past.codes.to(y.dtype)
        q = torch.sigmoid(y)
        z = t * y * y if squares else t
        sums = (z * (q - 0.5)).sum((1, 2))
        slope = z * q * (1 - q)
        if squares:
            slope = slope + 2 * t * y * (q - 0.5)
        return slope, sums
