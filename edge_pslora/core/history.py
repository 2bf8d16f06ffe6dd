"""The accumulated past S_t = sum_i D_i in constant memory (METHOD.md, "Bounded memory").

Each layer keeps rank-k factors S~ = left right. A new update is folded in by a truncated SVD of the
stacked factors: QR of the two thin parts, SVD of a (k + r)-square core, never an out x in matrix. The
byte budget is given to the layers where the energy is, anew at every fold. The certificate of a
layer, eps, is the sum over folds of the Frobenius norm of what was discarded (rounding of the stored
factors included): by the triangle inequality |S~ - S|_F <= eps, so |S~_ij - S_ij| <= eps and every
entry with |S~_ij| > eps has a proven sign.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from edge_pslora.errors import BudgetError

BYTES_PER_NUMBER = 4  # factors are kept in float32


@dataclass(frozen=True)
class LayerHistory:
    """S~ = left right of one layer: left [out, k], right [k, in], float32; eps in units of weight."""

    left: torch.Tensor
    right: torch.Tensor
    eps: float = 0.0

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    def dense(self) -> torch.Tensor:
        """S~ [out, in]; for tests and reports of one layer, never for training."""
        return self.left @ self.right


@dataclass(frozen=True)
class ProvenSigns:
    """Shares in [0, 1]: of the entries, and of the sum of |S~|, whose sign the certificate proves."""

    entries: float
    weight: float


def empty_layer(out_features: int, in_features: int) -> LayerHistory:
    """The history before the first session: rank 0, exact."""
    return LayerHistory(torch.zeros(out_features, 0), torch.zeros(0, in_features))


def numbers_per_rank(shape: tuple[int, int]) -> int:
    """How many numbers one more rank of a layer [out, in] costs."""
    return shape[0] + shape[1]


def overhead_bytes(names: Iterable[str]) -> int:
    """What a file needs beside the factors: each layer's name, shape, rank and eps, and a header."""
    return 512 + sum(len(name.encode()) + 32 for name in names)


def pool_numbers(shapes: Mapping[str, tuple[int, int]], budget_bytes: int) -> int:
    """The size of the whole store, in float32 numbers: the budget, or full rank everywhere if less.

    The file with all of the store fits the budget (`overhead_bytes` is taken off).

    Raises:
        BudgetError: the budget does not hold rank 1 of every layer.
    """
    least = sum(numbers_per_rank(shape) for shape in shapes.values())
    full = sum(numbers_per_rank(shape) * min(shape) for shape in shapes.values())
    needed = least * BYTES_PER_NUMBER + overhead_bytes(shapes)
    if budget_bytes < needed:
        raise BudgetError(
            "--history-budget",
            expected=f"at least {needed} bytes (rank 1 of {len(shapes)} layers)",
            found=f"{budget_bytes} bytes",
            remedy=f"use --history-budget {needed} or more, or fewer targets",
        )
    return min((budget_bytes - overhead_bytes(shapes)) // BYTES_PER_NUMBER, full)


def fold(
    history: Mapping[str, LayerHistory],
    updates: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    numbers: int,
) -> dict[str, LayerHistory]:
    """Adds one session's updates to the history and truncates it to `numbers` float32 numbers.

    Args:
        history: per layer; layers without an update keep their content (and may lose rank).
        updates: per layer D = P Q with P [out, r] (scaling included) and Q [r, in].
        numbers: the size of the store, from `pool_numbers`.
    """
    cores = {name: _core(layer, updates.get(name)) for name, layer in history.items()}
    spectra = {name: core[1] for name, core in cores.items()}
    shapes = {name: (h.left.shape[0], h.right.shape[1]) for name, h in history.items()}
    ranks = allocate_ranks(spectra, shapes, numbers)
    return {name: _truncate(cores[name], ranks[name], history[name].eps) for name in history}


_Core = tuple[
    torch.Tensor, torch.Tensor, torch.Tensor
]  # U [out, m], sigma [m], V^T [m, in]; float64


def _core(layer: LayerHistory, update: tuple[torch.Tensor, torch.Tensor] | None) -> _Core:
    left, right = layer.left.double(), layer.right.double()
    if update is not None:
        left = torch.cat([left, update[0].double()], dim=1)
        right = torch.cat([right, update[1].double()], dim=0)
    left_q, left_r = torch.linalg.qr(left)
    right_q, right_r = torch.linalg.qr(right.T)
    U, sigma, Vh = torch.linalg.svd(left_r @ right_r.T, full_matrices=False)
    return left_q @ U, sigma, Vh @ right_q.T


def _truncate(core: _Core, rank: int, eps: float) -> LayerHistory:
    U, sigma, Vh = core
    root = sigma[:rank].sqrt()
    left, right = U[:, :rank] * root, root[:, None] * Vh[:rank]
    stored_left, stored_right = left.float(), right.float()
    # |left right - left' right'|_F <= |left - left'| |right| + |left'| |right - right'|
    rounding = torch.linalg.matrix_norm(left - stored_left) * torch.linalg.matrix_norm(right)
    rounding += torch.linalg.matrix_norm(stored_left.double()) * torch.linalg.matrix_norm(
        right - stored_right
    )
    tail = torch.linalg.vector_norm(sigma[rank:])
    return LayerHistory(stored_left, stored_right, eps + float(tail + rounding))


def allocate_ranks(
    spectra: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, int]], numbers: int
) -> dict[str, int]:
    """Ranks per layer within `numbers`: one each, then by energy per number, largest first.

    spectra: per layer the singular values in descending order. Ties: in the order of the layers.
    Deterministic.
    """
    ranks = {name: min(1, len(spectra[name])) for name in spectra}
    left_over = numbers - sum(numbers_per_rank(shapes[name]) * ranks[name] for name in ranks)
    candidates = [
        (-(float(sigma) ** 2) / numbers_per_rank(shapes[name]), position, index, name)
        for position, name in enumerate(spectra)
        for index, sigma in enumerate(spectra[name])
        if index >= 1 and float(sigma) > 0.0
    ]
    full: set[str] = set()
    for _, _, _, name in sorted(candidates):
        cost = numbers_per_rank(shapes[name])
        if name in full or cost > left_over:
            full.add(name)
            continue
        ranks[name] += 1
        left_over -= cost
    return ranks


def proven_signs(layer: LayerHistory, tile_rows: int = 256) -> ProvenSigns:
    """How much of S~ the certificate covers, one row tile at a time."""
    proven = entries = 0
    proven_weight = weight = 0.0
    for start in range(0, layer.left.shape[0], tile_rows):
        tile = (layer.left[start : start + tile_rows] @ layer.right).abs()
        mask = tile > layer.eps
        proven += int(mask.sum())
        entries += tile.numel()
        proven_weight += float(tile[mask].double().sum())
        weight += float(tile.double().sum())
    return ProvenSigns(proven / max(entries, 1), proven_weight / weight if weight > 0 else 0.0)
