"""The low-rank update of one layer, as arrays in the shapes PEFT stores. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge_pslora.errors import AdapterError

LayerKind = Literal[
    "linear", "transposed_linear", "conv1d", "conv2d", "embedding", "mha_in_proj", "mha_out_proj"
]

# Dimensions of the factors of a convolution; the other kinds have two.
_KERNELS = {"conv1d": 3, "conv2d": 4}

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class LoraFactors:
    """The update of one layer, D = scaling * B A.

    kind linear, mha_in_proj, mha_out_proj: A [r, in], B [out, r]; conv1d: A [r, in, k], B [out, r, 1];
    conv2d: A [r, in, kh, kw], B [out, r, 1, 1]; embedding: A [r, num], B [dim, r], its weight
    [num, dim] gets D transposed; transposed_linear (transformers' Conv1D): as linear, its weight
    [in, out] gets D transposed.
    """

    kind: LayerKind
    A: Array
    B: Array
    scaling: float

    @property
    def rank(self) -> int:
        return int(self.A.shape[0])

    def delta(self) -> Array:
        """The update in the shape of the layer's weight, float32."""
        a_matrix = self.A.reshape(self.rank, -1).astype(np.float32)
        b_matrix = self.B.reshape(len(self.B), -1).astype(np.float32)
        product = (b_matrix @ a_matrix) * np.float32(self.scaling)
        if transposes(self.kind):
            return product.T
        return product.reshape(len(self.B), *self.A.shape[1:])


def transposes(kind: LayerKind) -> bool:
    """Whether the layer's weight is the transpose of the matrix [out, in] that D is added to."""
    return kind in ("embedding", "transposed_linear")


def factors_from_matrices(
    kind: LayerKind, A: Array, B: Array, scaling: float, weight_shape: Sequence[int]
) -> LoraFactors:
    """Factors from plain matrices A [r, in], B [out, r] (a kernel flattened into `in`).

    weight_shape: of the layer's weight; [out, in, k] or [out, in, kh, kw] for a convolution.
    """
    if kind in _KERNELS:
        A = A.reshape(len(A), *weight_shape[1:])
        B = B.reshape(*B.shape, *(1,) * (len(weight_shape) - 2))
    return LoraFactors(kind, A, B, scaling)


def check_factors(path: str, layer: LoraFactors) -> None:
    """Shapes as the kind wants them, a rank from 1, a scaling above zero, or an AdapterError."""
    a_shape, b_shape = layer.A.shape, layer.B.shape
    dimensions = _KERNELS.get(layer.kind, 2)
    fits = (
        len(a_shape) == len(b_shape) == dimensions
        and a_shape[0] == b_shape[1] >= 1
        and math.prod(b_shape[2:]) == 1
    )
    if fits and layer.kind == "mha_in_proj":
        fits = b_shape[0] == 3 * a_shape[1]
    if not fits or not (math.isfinite(layer.scaling) and layer.scaling > 0):
        kernel, ones = ", k" * (dimensions - 2), ", 1" * (dimensions - 2)
        wanted = f"A [r, in{kernel}], B [out, r{ones}]"
        raise AdapterError(
            f"adapter of {path}",
            expected=f"{wanted} of a {layer.kind} layer and a scaling above 0",
            found=f"A {list(a_shape)}, B {list(b_shape)}, scaling {layer.scaling}",
            remedy="this is a defect: report it",
        )
