"""The accumulated past S_t = sum_i D_i in constant memory (METHOD.md, "Bounded memory").

Each layer keeps rank-k factors S~ = left right in fixed point. A new update is folded in by a truncated
SVD of the stacked factors: QR of the two thin parts, SVD of a (k + r)-square core, never an out x in
matrix. One byte budget serves the whole model: at every fold each further byte goes where it removes
the most error, be it a new component or a finer rounding of a strong one.

The certificate of a layer adds up, over the folds, what each of them lost (discarded tail and
rounding): by the triangle inequality |S~_ij - S_ij| <= eps for every entry and |S~ - S|_F <= frobenius.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from edge_pslora.core.fixed_point import (
    MAX_PLANES,
    Planes,
    component_bytes,
    pack,
    packed_bytes,
    unpack,
)
from edge_pslora.errors import BudgetError

# Share of a component's energy that the rounding to 0, 1, 2, 3 bytes loses: two factors, each with a
# noise of scale^2 / 12, for numbers whose largest is 3.5 times their root mean square.
_LOST = (1.0, *(2 * (3.5 / (2 ** (8 * width - 1) - 1)) ** 2 / 12 for width in (1, 2, 3)))
_NOISE_FLOOR = 1e-7  # of the largest singular value; below is the rounding of the float32 updates
_ARITHMETIC = 1e-12  # of the largest singular value: what float64 QR, SVD and sums may be off by


@dataclass(frozen=True)
class LayerHistory:
    """S~ of one layer [out, in]: packed factors uint8, and what they are proven to be within.

    eps: |S~_ij - S_ij| <= eps; frobenius: |S~ - S|_F <= frobenius; both in units of weight.
    """

    shape: tuple[int, int]
    planes: Planes
    packed: torch.Tensor
    eps: float = 0.0
    frobenius: float = 0.0

    @property
    def rank(self) -> int:
        return self.planes[0]

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """left [out, k], right [k, in], float32; decoded anew at every call."""
        return unpack(self.packed, self.shape, self.planes)

    def dense(self) -> torch.Tensor:
        """S~ [out, in], float32; for tests and reports of one layer, never for training."""
        left, right = self.factors()
        return left @ right


def empty_layer(out_features: int, in_features: int) -> LayerHistory:
    """The history before the first session: rank 0, exact."""
    return LayerHistory((out_features, in_features), (0, 0, 0), torch.zeros(0, dtype=torch.uint8))


def overhead_bytes(names: Iterable[str]) -> int:
    """What a file needs beside the pool: each layer's name, shape, planes and bounds, and a header."""
    return 512 + sum(len(name.encode()) + 48 for name in names)


def pool_bytes(shapes: Mapping[str, tuple[int, int]], budget_bytes: int) -> int:
    """The size of the whole store: what the budget leaves, or full rank everywhere if that is less.

    Raises:
        BudgetError: the budget does not hold rank 1 of every layer.
    """
    least = sum(component_bytes(shape) for shape in shapes.values())
    full = 0
    for shape in shapes.values():
        rank = min(shape)
        full += packed_bytes(shape, (rank, rank, rank))
    needed = least + overhead_bytes(shapes)
    if budget_bytes < needed:
        raise BudgetError(
            "--history-budget",
            expected=f"at least {needed} bytes (rank 1 of {len(shapes)} layers)",
            found=f"{budget_bytes} bytes",
            remedy=f"use --history-budget {needed} or more, or fewer targets",
        )
    return min(budget_bytes - overhead_bytes(shapes), full)


def fold(
    history: Mapping[str, LayerHistory],
    updates: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    size: int,
) -> dict[str, LayerHistory]:
    """Adds one session's updates to the history and truncates it to `size` bytes.

    Args:
        history: per layer; layers without an update keep their content (and may lose rank).
        updates: per layer D = P Q with P [out, r] (scaling included) and Q [r, in].
        size: of the store, from `pool_bytes`.
    """
    cores = {name: _core(layer, updates.get(name)) for name, layer in history.items()}
    spectra = {name: core.sigma for name, core in cores.items()}
    shapes = {name: layer.shape for name, layer in history.items()}
    planes = allocate_bytes(spectra, shapes, size)
    return {name: _truncate(cores[name], planes[name], history[name]) for name in history}


@dataclass(frozen=True)
class _Core:
    """S = U diag(sigma) Vh: U [out, m], sigma [m] falling, Vh [m, in]; float64."""

    U: torch.Tensor
    sigma: torch.Tensor
    Vh: torch.Tensor


def _core(layer: LayerHistory, update: tuple[torch.Tensor, torch.Tensor] | None) -> _Core:
    left, right = (factor.double() for factor in layer.factors())
    if update is not None:
        left = torch.cat([left, update[0].double()], dim=1)
        right = torch.cat([right, update[1].double()], dim=0)
    left_q, left_r = torch.linalg.qr(left)
    right_q, right_r = torch.linalg.qr(right.T)
    U, sigma, Vh = torch.linalg.svd(left_r @ right_r.T, full_matrices=False)
    return _Core(left_q @ U, sigma, Vh @ right_q.T)


def allocate_bytes(
    spectra: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, int]], size: int
) -> dict[str, Planes]:
    """Bytes per component of every layer within `size`: one for each layer's first component, then
    always the byte that removes the most squared error for its cost. Deterministic.

    spectra: per layer the singular values in falling order. Ties: in the order of the layers.
    """
    planes = {name: [0] * MAX_PLANES for name in spectra}
    left_over = size
    candidates: list[tuple[float, int, int, int, str]] = []
    for position, (name, spectrum) in enumerate(spectra.items()):
        energies = [float(sigma) ** 2 for sigma in spectrum]
        floor = (energies[0] if energies else 0.0) * _NOISE_FLOOR**2
        for index, energy in enumerate(energies):
            if not energy > floor:
                break
            for plane in range(MAX_PLANES):
                gain = energy * (_LOST[plane] - _LOST[plane + 1]) / _cost(shapes[name], plane)
                # the first byte of every layer goes before everything else
                urgency = -gain if index or plane else -float("inf")
                candidates.append((urgency, position, plane, index, name))
    full: set[str] = set()
    for _, _, plane, _, name in sorted(candidates):
        cost = _cost(shapes[name], plane)
        if name in full or cost > left_over:
            full.add(name)
            continue
        planes[name][plane] += 1
        left_over -= cost
    return {name: (counts[0], counts[1], counts[2]) for name, counts in planes.items()}


def _cost(shape: tuple[int, int], plane: int) -> int:
    return component_bytes(shape) if plane == 0 else shape[0] + shape[1]


def _truncate(core: _Core, planes: Planes, before: LayerHistory) -> LayerHistory:
    rank = planes[0]
    root = core.sigma.sqrt()
    lefts, rights = core.U * root, root[:, None] * core.Vh
    packed = pack(lefts[:, :rank], rights[:rank], planes)
    left, right = (factor.double() for factor in unpack(packed, before.shape, planes))
    # what is lost: tail + (lefts - left) rights + left (rights - right), a sum of m outer products
    columns = torch.cat([lefts[:, rank:], lefts[:, :rank] - left, left], dim=1)
    rows = torch.cat([rights[rank:], rights[:rank], rights[:rank] - right], dim=0)
    largest = float(core.sigma[0]) if len(core.sigma) else 0.0
    entry, norm = _bounds(columns, rows)
    return LayerHistory(
        before.shape,
        planes,
        packed,
        before.eps + entry + _ARITHMETIC * largest,
        before.frobenius + norm + _ARITHMETIC * largest,
    )


def _bounds(columns: torch.Tensor, rows: torch.Tensor) -> tuple[float, float]:
    """(bound on every entry, Frobenius norm) of E = columns rows, without forming E.

    |E_ij| <= |columns_i| |rows_j| (Cauchy-Schwarz), sharpest when each outer product has its size
    split evenly over its two vectors; and no entry exceeds the norm.
    """
    if columns.shape[1] == 0:
        return 0.0, 0.0
    gram = (columns.T @ columns) * (rows @ rows.T)
    norm = float(gram.sum().clamp_min(0.0).sqrt())
    sizes = torch.linalg.vector_norm(columns, dim=0), torch.linalg.vector_norm(rows, dim=1)
    tiny = torch.finfo(torch.float64).tiny
    balance = (sizes[1].clamp_min(tiny) / sizes[0].clamp_min(tiny)).sqrt()
    present = (sizes[0] > 0) & (sizes[1] > 0)
    widest = torch.linalg.vector_norm((columns * balance)[:, present], dim=1).max()
    tallest = torch.linalg.vector_norm((rows / balance[:, None])[present], dim=0).max()
    return min(float(widest * tallest), norm), norm
