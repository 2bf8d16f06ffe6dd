"""Other ways to keep the past in few bytes, held against the product's factors at equal bytes.

Dense forms keep every entry of S in b bits with one float32 scale a row: 8 or 4 bits rounded to the
nearest step, or one bit, the sign, with the row's mean size. Each forgets only by rounding anew at
every fold; the factors forget what they have no rank for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from edge_pslora.core.certificate import certify_signs
from edge_pslora.core.history import LayerHistory, empty_layer, fold, pool_bytes

Shapes = Mapping[str, tuple[int, int]]
Updates = Mapping[str, tuple[torch.Tensor, torch.Tensor]]  # P [out, r], Q [r, in]


class HistoryForm(Protocol):
    """A store of the past: `nbytes` says what it takes on disk, whatever was folded in."""

    name: str
    nbytes: int

    def fold(self, updates: Updates) -> None: ...

    def dense(self, layer: str) -> torch.Tensor:
        """What it remembers of S [out, in], float64."""


class Factors:
    """The product's form under a byte budget."""

    def __init__(self, shapes: Shapes, budget: int) -> None:
        self.name = f"factors, {budget / 1e6:.3g} MB"
        self.nbytes = budget
        self.size = pool_bytes(shapes, budget)
        self.history: dict[str, LayerHistory] = {n: empty_layer(*s) for n, s in shapes.items()}

    def fold(self, updates: Updates) -> None:
        self.history = fold(self.history, updates, self.size)

    def dense(self, layer: str) -> torch.Tensor:
        left, right = self.history[layer].factors()
        return left.double() @ right.double()

    def proven_agreement(self) -> float:
        """The mean over layers of the certified magnitude-weighted sign agreement."""
        proven = [certify_signs(layer).agreement for layer in self.history.values()]
        return sum(proven) / len(proven)


class Dense:
    """S itself in `bits` bits an entry and a float32 scale a row."""

    def __init__(self, shapes: Shapes, bits: int) -> None:
        self.name = f"dense, {bits} bit"
        self.bits = bits
        self.nbytes = sum(out * size * bits // 8 + 4 * out for out, size in shapes.values())
        self.values = {n: torch.zeros(s, dtype=torch.float64) for n, s in shapes.items()}

    def fold(self, updates: Updates) -> None:
        for name, (P, Q) in updates.items():
            self.values[name] = quantise(self.values[name] + P.double() @ Q.double(), self.bits)

    def dense(self, layer: str) -> torch.Tensor:
        return self.values[layer]


def quantise(S: torch.Tensor, bits: int) -> torch.Tensor:
    """S [out, in] in `bits` bits and a scale a row; one bit: sign times the row's mean size."""
    if bits == 1:
        return S.sign() * S.abs().mean(dim=1, keepdim=True)
    largest = 2 ** (bits - 1) - 1
    step = S.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(S.dtype).tiny) / largest
    codes: torch.Tensor = (S / step).round().clamp(-largest, largest)
    return codes * step


@dataclass(frozen=True)
class Fidelity:
    """agreement: magnitude-weighted sign agreement; error: |S~ - S|_F / |S|_F; over all layers."""

    agreement: float
    error: float


def fidelity(form: HistoryForm, truth: Mapping[str, torch.Tensor]) -> Fidelity:
    """How well `form` remembers the true sums S [out, in], float64."""
    agreeing = weight = error = energy = 0.0
    for name, S in truth.items():
        found = form.dense(name)
        agreeing += float(S.abs()[found.sign() == S.sign()].sum())
        weight += float(S.abs().sum())
        error += float((found - S).pow(2).sum())
        energy += float(S.pow(2).sum())
    if weight == 0.0:
        return Fidelity(1.0, 0.0)
    return Fidelity(agreeing / weight, (error / energy) ** 0.5)


def add(truth: Mapping[str, torch.Tensor], updates: Updates) -> dict[str, torch.Tensor]:
    """S + P Q of every layer with an update, in float64; the arguments stay."""
    return {
        name: S + updates[name][0].double() @ updates[name][1].double() if name in updates else S
        for name, S in truth.items()
    }
