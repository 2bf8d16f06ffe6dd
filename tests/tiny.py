"""Tiny models and data that the tests of training and of the pipeline share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from edge_pslora.data.types import Samples
from edge_pslora.models.types import Backbone, LoadedModel, ModelSource


class TinyBackbone(Backbone):
    """A user's module in the place where a real one would be."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.model(x)
        return features


@dataclass(frozen=True)
class ArrayInputs:
    """Float rows [N, F] as EncodedInputs."""

    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        return {"x": torch.from_numpy(self.rows[indices])}

    def lengths(self) -> np.ndarray:
        return np.ones(len(self.rows), dtype=np.int64)

    def to_arrays(self, indices: np.ndarray) -> dict[str, Any]:
        return {"x": self.rows[indices]}


class RowEncoder:
    input_names = ("x",)

    def encode(self, samples: Samples) -> ArrayInputs:
        return ArrayInputs(np.asarray(samples.inputs, dtype=np.float32))

    def from_arrays(self, arrays: dict[str, Any]) -> ArrayInputs:
        return ArrayInputs(arrays["x"])


def tiny_model(seed: int = 0, features: int = 6, size: int = 32) -> LoadedModel:
    """Three Linear layers with ReLU; features [N, size]."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(
            nn.Linear(features, size),
            nn.ReLU(),
            nn.Linear(size, size),
            nn.ReLU(),
            nn.Linear(size, size),
        )
    backbone = TinyBackbone(module).eval().requires_grad_(False)
    return LoadedModel(
        backbone, RowEncoder(), size, ModelSource("auto", "table"), dynamic_axes={"x": ("batch",)}
    )


def blobs(
    labels: tuple[str, ...], n: int = 40, features: int = 6, seed: int = 0, shift: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """n rows around one centre per label; a label has the same centre whatever the seed."""
    rng = np.random.default_rng(seed)
    rows, names = [], []
    for label in labels:
        centre = np.random.default_rng(sum(label.encode())).normal(size=features) * 4
        rows.append(centre + shift + rng.normal(size=(n, features)))
        names += [label] * n
    order = rng.permutation(len(names))
    return np.concatenate(rows).astype(np.float32)[order], np.array(names)[order]
