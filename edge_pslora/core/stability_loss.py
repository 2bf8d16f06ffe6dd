"""The stability loss L_s and its gradient in closed form (METHOD.md, Eq. 4).

With D = s B A the update in training, S the accumulated past, T = tanh(a S) and
c = 1 - T o tanh(a D) (0 where D agrees with S, 1 where S is silent, 2 where D opposes it):

    elementwise   L_s = mean_ij c_ij D_ij^2 / scale^2
    product       L_s = (rms(D) / scale) * mean_ij c_ij
    no direction  c = 1          no magnitude: L_s = mean_ij c_ij in both readings

`a` is the temperature in units of 1 / rms(S), `scale` a size of weight typical of the layer, so that
L_s carries no unit and one weight serves every layer. No gradient graph is built. What does not
involve the history needs only r x r products, since |D|^2 = s^2 <B^T B, A A^T>; the rest is a sum over
entries, made in tiles, over all rows or over every `row_stride`-th.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edge_pslora.config import StabilityConfig
from edge_pslora.core.stability import StabilityStack
from edge_pslora.core.stability_tiles import TileEngine, directed_sums, in_place_tiles


@dataclass(frozen=True)
class StabilityTerms:
    """L_s of each layer, [N], no unit, and its gradients: grad_A [N, r, in], grad_B [N, out, r]."""

    loss: torch.Tensor
    grad_A: torch.Tensor
    grad_B: torch.Tensor


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything else (bfloat16 and float16 have too few digits)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def sums_squares(config: StabilityConfig) -> bool:
    """Whether the entries of the agreement T u are weighted with D^2, or with 1."""
    return config.magnitude and config.reading == "elementwise"


def stability_terms(
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    stack: StabilityStack,
    config: StabilityConfig,
    offset: int = 0,
    engine: TileEngine | None = None,
) -> StabilityTerms:
    """L_s and its gradients for A [N, r, in], B [N, out, r]; no argument is changed.

    Args:
        stack: from `stack_targets`, in `computing_dtype(A.dtype)` and on A's device.
        offset: 0 <= offset < config.row_stride. The sums over the history take the rows offset,
            offset + row_stride, ..., times row_stride: over all offsets, their mean is the full sum.
        engine: computes the tiles, and owns the scratch; default: one of the size of the stack,
            for this call.

    Returns:
        The loss in the computing dtype; the gradients in the dtype of A and of B.
    """
    dtype = computing_dtype(A.dtype)
    sums = None
    if config.direction and not stack.silent:
        rows = slice(offset, None, config.row_stride)
        sums = directed_sums(
            A.detach().to(dtype),
            B.detach().to(dtype),
            scaling,
            stack,
            sums_squares(config),
            rows,
            engine or in_place_tiles([stack.shape], dtype, A.device),
        )
    # |D|^2 = s^2 <B^T B, A A^T>: where B A nearly cancels, only float64 keeps its digits
    wide_A, wide_B = A.detach().double(), B.detach().double()
    gram_A = scaling * wide_A @ wide_A.transpose(1, 2)
    gram_B = scaling * wide_B.transpose(1, 2) @ wide_B
    square = (gram_A * gram_B).sum((1, 2)).clamp_min(0.0)
    agreement = torch.zeros_like(square) if sums is None else sums.value
    value = _value(config, stack, square, agreement)
    by_norm = 2 * scaling * value.by_square[:, None, None]
    grad_A = torch.bmm(gram_B * by_norm, wide_A).to(dtype)
    grad_B = torch.bmm(wide_B, gram_A * by_norm).to(dtype)
    if sums is not None:
        # products with a multiple of the identity: BLAS adds a transposed matrix faster than add_ does
        eye = torch.eye(A.shape[1], dtype=dtype, device=A.device)
        grad_A.baddbmm_(eye * _each(value.by_agreement * sums.unit_A, dtype), sums.along_A)
        grad_B.baddbmm_(
            sums.along_Bt.transpose(1, 2), eye * _each(value.by_agreement * sums.unit_B, dtype)
        )
    return StabilityTerms(value.loss.to(dtype), grad_A.to(A.dtype), grad_B.to(B.dtype))


def _each(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """One factor per layer, [N, 1, 1]."""
    return numbers.to(dtype)[:, None, None]


@dataclass(frozen=True)
class _Value:
    """L_s and its derivatives by |D|_F^2 and by the sum of agreement; float64 [N] each."""

    loss: torch.Tensor
    by_square: torch.Tensor
    by_agreement: torch.Tensor


def _value(
    config: StabilityConfig, stack: StabilityStack, square: torch.Tensor, agreement: torch.Tensor
) -> _Value:
    """L_s from |D|_F^2 and sum_ij T u w(D), w = D^2 in the elementwise reading, else 1."""
    elements = stack.shape[1] * stack.shape[2]
    if not config.magnitude:
        per_entry = torch.full_like(square, -1 / elements)
        return _Value(1.0 - agreement / elements, torch.zeros_like(square), per_entry)
    if config.reading == "elementwise":
        unit = 1 / (elements * stack.scale**2)
        return _Value((square - agreement) * unit, unit, -unit)
    size = (square / elements).sqrt() / stack.scale  # rms(D) / scale
    mean_c = 1.0 - agreement / elements
    # the norm has no gradient at D = 0: take the subgradient zero, as autograd does for a norm
    per_square = mean_c / (2 * elements * stack.scale**2 * size.clamp_min(1e-300))
    return _Value(size * mean_c, torch.where(size > 0, per_square, 0.0), -size / elements)
