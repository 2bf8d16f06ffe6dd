"""The part of the stability loss that looks at every entry: sums over S and D, one tile at a time.

    sum_ij T u w(D)  with  T = tanh(a S), u = tanh(a D)  and  w = 1 ("ones") or D^2 ("squares")

and its gradients in A and B. A tile is some rows of some layers of a stack. In terms of y = 2 a D and
q = 1 / (1 + exp(-y)): u = 2 q - 1 and du/dy = 2 q (1 - q). torch's sigmoid takes a tenth of the time of
its tanh on a CPU; what it loses is relative precision of u near 0, which c = 1 - T u does not feel. With
t = T in units of the tile (see `_units`) and h = q - 1/2:

    squares   sum t h y^2    its slope in y:   t y^2 q (1 - q) + 2 t y h
    ones      sum t h        its slope in y:   t q (1 - q)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch

from edge_pslora.core.stability import CODE_STEPS, StabilityStack

TILE_ELEMENTS = 3 << 17  # numbers; of float32 1.5 MiB, and scratch is three such tiles


@dataclass(frozen=True)
class HistoryTile:
    """The past of a tile: codes int8 [n, m, in], or left [n, m, k] and right [n, k, in] of 2 a S."""

    left: torch.Tensor
    right: torch.Tensor
    codes: torch.Tensor | None


class TileEngine(Protocol):
    """How a tile is computed. `elements`: the numbers of the largest tile that it takes."""

    @property
    def elements(self) -> int: ...

    def __call__(
        self, B: torch.Tensor, Y: torch.Tensor, past: HistoryTile, squares: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Slope [n, m, in], valid until the next call, and sums [n], for y = B Y.

        B [n, m, r], Y [n, r, in].
        """
        ...


@dataclass(frozen=True)
class InPlaceTiles:
    """Three buffers, allocated once and used for every tile of every layer and step: [3, elements]."""

    buffers: torch.Tensor

    @property
    def elements(self) -> int:
        return self.buffers.shape[1]

    def __call__(
        self, B: torch.Tensor, Y: torch.Tensor, past: HistoryTile, squares: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (B.shape[0], B.shape[1], Y.shape[2])
        numbers = shape[0] * shape[1] * shape[2]
        y, t, q = (buffer[:numbers].view(shape) for buffer in self.buffers)
        if past.codes is None:
            torch.bmm(past.left, past.right, out=t)
            if squares:
                t.sigmoid_().sub_(0.5)
            else:  # no |D|^2 stands beside these sums: they need the digits of T near 0
                t.mul_(0.5).tanh_().mul_(0.5)
        else:
            t.copy_(past.codes)
        torch.bmm(B, Y, out=y)
        torch.sigmoid(y, out=q)
        if not squares:
            sums = _times_half_shifted(t, q)
            return _sigmoid_backward_(t, q), sums
        t.mul_(y)
        y.mul_(t)  # now t y^2
        sums = _times_half_shifted(y, q)
        return _sigmoid_backward_(y, q).addcmul_(t, q, value=2).sub_(t), sums


def _sigmoid_backward_(gradient: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """gradient <- gradient q (1 - q) in one pass."""
    result: torch.Tensor = torch.ops.aten.sigmoid_backward.grad_input(
        gradient, q, grad_input=gradient
    )
    return result


def _times_half_shifted(z: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """sum z (q - 1/2) of each layer, [n], without a tile for the product."""
    layers = zip(z.flatten(1).unbind(), q.flatten(1).unbind(), strict=True)
    dots = torch.stack([torch.dot(one, other) for one, other in layers])
    return dots.sub_(z.sum((1, 2)), alpha=0.5)


def in_place_tiles(
    shapes: Iterable[tuple[int, int, int]],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    elements: int = TILE_ELEMENTS,
) -> InPlaceTiles:
    """Buffers for stacks of these shapes (N, out, in): of `elements` numbers, of a whole stack if that
    is less, of one row if that is more."""
    size = max(min(n * out * width, max(elements, width)) for n, out, width in shapes)
    return InPlaceTiles(torch.empty(3, size, dtype=dtype, device=device))


@dataclass(frozen=True)
class DirectedSums:
    """sum_ij T u w(D) of each layer, float64 [N], and its gradients without their factors.

    The gradient in A is unit_A * along_A, [N, r, in]; in the transpose of B, unit_B * along_Bt,
    [N, r, out]. The units, float64 [N], are apart: a caller has factors of its own to put on.
    """

    value: torch.Tensor
    along_A: torch.Tensor
    along_Bt: torch.Tensor
    unit_A: torch.Tensor
    unit_B: torch.Tensor


def directed_sums(
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    stack: StabilityStack,
    squares: bool,
    rows: slice,
    engine: TileEngine,
) -> DirectedSums:
    """The sums over `rows` of every layer, times the rows' step, for A [N, r, in], B [N, out, r]."""
    layers, out, size = stack.shape
    y_per_D = 2 * scaling * stack.sharpness
    Y = A * y_per_D[:, None, None].to(A.dtype)
    picked_B, left = B[:, rows], stack.left[:, rows]
    codes = None if stack.codes is None else stack.codes[:, rows]
    count = picked_B.shape[1]
    value = torch.zeros_like(stack.sharpness)
    along_A, along_Bt = torch.zeros_like(A), A.new_zeros(layers, A.shape[1], out)
    picked_Bt = along_Bt[:, :, rows]
    some_layers, some_rows = tile_shape(layers, count, size, engine.elements)
    for first in range(0, layers, some_layers):
        n = slice(first, first + some_layers)
        k = max(stack.ranks[n])
        right = stack.right[n, :k]
        for start in range(0, count, some_rows):
            m = slice(start, start + some_rows)
            tile_B = picked_B[n, m]
            past = HistoryTile(left[n, m, :k], right, None if codes is None else codes[n, m])
            slope, sums = engine(tile_B, Y[n], past, squares)
            value[n] += sums
            # [r, in] [in, m] and not [m, in] [in, r]: BLAS is a third faster with the long side last
            picked_Bt[n, :, m] = Y[n] @ slope.transpose(1, 2)
            along_A[n].baddbmm_(tile_B.transpose(1, 2), slope)
    unit = _units(stack, squares) * (rows.step or 1)
    return DirectedSums(unit * value, along_A, along_Bt, unit * y_per_D, unit)


def _units(stack: StabilityStack, squares: bool) -> torch.Tensor:
    """float64 [N]: T u w(D) is so many times t h w(y). t is T / 2, or 127 T where it comes in codes."""
    steps = 0.5 if stack.codes is None else float(CODE_STEPS)
    if not squares:
        return torch.full_like(stack.sharpness, 2 / steps)
    a = stack.sharpness
    return torch.where(a > 0, 1 / (2 * steps * a.clamp_min(1e-300) ** 2), 0.0)


def tile_shape(layers: int, rows: int, columns: int, elements: int) -> tuple[int, int]:
    """Layers and rows of a tile of at most `elements` numbers (or one row of one layer).

    An even number of layers where there are as many: the products of a batch go to the threads layer by
    layer, and the element-wise passes in halves, so both find what they need in their own cache.
    """
    rows = max(1, rows)  # a sample may be empty
    whole = elements // (rows * columns)
    if whole >= 2:
        return min(layers, whole - whole % 2), rows
    some_layers = min(layers, 2) if 2 * columns <= elements else 1
    return some_layers, min(rows, max(1, elements // (some_layers * columns)))
