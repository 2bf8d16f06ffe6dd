"""Updates as sessions leave them, made up: a decaying spectrum and one direction that all share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from edge_pslora.core.history import LayerHistory, empty_layer, fold, pool_bytes

DECAY = 0.6  # each singular value of an update to the one before it
SHARED = 0.5  # how much of the first direction is the same in every session
SIZE = 1e-3  # largest singular value per sqrt(out * in): updates of a few per cent of the weight

Shapes = Mapping[str, tuple[int, int]]
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


def session_updates(shapes: Shapes, rank: int, session: int, seed: int) -> Factors:
    """D = P Q of every layer: P [out, r], Q [r, in], float32; the same arguments, the same bytes.

    A direction of the layer's own is in all sessions (the drift), the rest is random; layers
    differ in energy by up to ten.
    """
    return {
        name: _update(shape, rank, np.random.default_rng([seed, layer]), [seed, layer, session])
        for layer, (name, shape) in enumerate(shapes.items())
    }


def _update(
    shape: tuple[int, int], rank: int, own: np.random.Generator, key: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    out, size = shape
    energy = 10.0 ** -own.uniform(0.0, 0.5)  # of amplitude; a factor of ten in its square
    drift = own.standard_normal((out, 1)), own.standard_normal((1, size))
    new = np.random.default_rng(key)
    left, right = new.standard_normal((out, rank)), new.standard_normal((rank, size))
    keep = (1.0 - SHARED**2) ** 0.5
    left[:, :1] = SHARED * drift[0] + keep * left[:, :1]
    right[:1] = SHARED * drift[1] + keep * right[:1]
    sigma = SIZE * energy * DECAY ** np.arange(rank)
    return torch.from_numpy(left * sigma).float(), torch.from_numpy(right).float()


def folded_history(
    shapes: Shapes, rank: int, sessions: int, budget_bytes: int, seed: int
) -> dict[str, LayerHistory]:
    """The product's history after these sessions."""
    history = empty_history(shapes)
    size = pool_bytes(shapes, budget_bytes)
    for session in range(1, sessions + 1):
        history = fold(history, session_updates(shapes, rank, session, seed), size)
    return history


def empty_history(shapes: Shapes) -> dict[str, LayerHistory]:
    return {name: empty_layer(*shape) for name, shape in shapes.items()}
