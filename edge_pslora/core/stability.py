"""The stability loss L_s of one layer and its gradient in closed form (METHOD.md, Eq. 4).

With D = s B A the update in training, S = L R the accumulated past as rank-k factors, T = tanh(a S)
and c = 1 - T o tanh(a D) (0 where D agrees with S, 1 where S is silent, 2 where D opposes it):

    elementwise   L_s = mean_ij c_ij D_ij^2 / scale^2
    product       L_s = (rms(D) / scale) * mean_ij c_ij
    no direction  c = 1          no magnitude: L_s = mean_ij c_ij in both readings

`a` is the temperature in units of 1 / rms(S), `scale` a size of weight typical of the layer, so that
L_s carries no unit and one weight serves every layer. No gradient graph is built and S and D exist
one row tile at a time: what does not involve the history needs only (r x r) products.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edge_pslora.config import StabilityConfig

TILE_ELEMENTS = 1 << 18  # 1 MiB of float32: stays in the cache of a small processor


@dataclass(frozen=True)
class StabilityTarget:
    """What L_s of one layer compares an update with; fixed during a session.

    left [out, k] and right [k, in]: factors of S (k = 0: no history yet). rms: root mean square of
    S, in units of weight. scale: in units of weight, > 0.
    """

    left: torch.Tensor
    right: torch.Tensor
    rms: float
    scale: float

    @property
    def silent(self) -> bool:
        return self.left.shape[1] == 0 or self.rms == 0.0


@dataclass(frozen=True)
class StabilityTerm:
    """L_s (no unit) and its gradients: grad_A [r, in], grad_B [out, r]."""

    loss: torch.Tensor
    grad_A: torch.Tensor
    grad_B: torch.Tensor


def stability_target(
    left: torch.Tensor, right: torch.Tensor, base_rms: float, base_share: float = 0.05
) -> StabilityTarget:
    """The target of a layer with history S = left right and base weight of rms `base_rms`.

    scale^2 = rms(S)^2 + (base_share * base_rms)^2: an update is large when it outgrows the past, or,
    before there is a past, a twentieth of the base weight.
    """
    elements = left.shape[0] * right.shape[1]
    gram = (left.T.double() @ left.double()) * (right.double() @ right.T.double())
    rms = float((gram.sum().clamp_min(0.0) / elements).sqrt())
    scale = (rms**2 + (base_share * base_rms) ** 2) ** 0.5
    return StabilityTarget(left, right, rms, scale if scale > 0.0 else 1.0)


def stability_term(
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    target: StabilityTarget,
    config: StabilityConfig,
    tile_elements: int = TILE_ELEMENTS,
) -> StabilityTerm:
    """L_s and its gradient for A [r, in], B [out, r]; neither argument is changed.

    Scratch: a few tiles of `tile_elements` numbers, whatever the size of the layer.
    """
    A, B = A.detach(), B.detach()
    directed = config.direction and not target.silent
    elements = B.shape[0] * A.shape[1]
    gram_A, gram_B = A @ A.T, B.T @ B  # [r, r] each; |D|^2 = s^2 <B^T B, A A^T>
    square = scaling**2 * (gram_B * gram_A).sum().clamp_min(0.0)
    # gradient of |D|^2 / 2 with respect to A and B
    norm_grad_A, norm_grad_B = scaling**2 * (gram_B @ A), scaling**2 * (B @ gram_A)

    if not config.magnitude:
        if not directed:
            zero = torch.zeros((), dtype=A.dtype, device=A.device)
            return StabilityTerm(zero + 1.0, torch.zeros_like(A), torch.zeros_like(B))
        agreement, grad_A, grad_B = _directed_sums(
            A, B, scaling, target, config, "ones", tile_elements
        )
        return StabilityTerm(1.0 - agreement / elements, -grad_A / elements, -grad_B / elements)

    if config.reading == "elementwise":
        unit = elements * target.scale**2
        loss, grad_A, grad_B = square / unit, 2 * norm_grad_A / unit, 2 * norm_grad_B / unit
        if directed:
            agreement, dA, dB = _directed_sums(
                A, B, scaling, target, config, "squares", tile_elements
            )
            loss, grad_A, grad_B = loss - agreement / unit, grad_A - dA / unit, grad_B - dB / unit
        return StabilityTerm(loss, grad_A, grad_B)

    rms = (square / elements).sqrt()
    mean_c = torch.ones((), dtype=A.dtype, device=A.device)
    dA, dB = torch.zeros_like(A), torch.zeros_like(B)
    if directed:
        agreement, dA, dB = _directed_sums(A, B, scaling, target, config, "ones", tile_elements)
        mean_c = 1.0 - agreement / elements
    # the norm has no gradient at D = 0: take the subgradient zero, as autograd does for a norm
    per_norm = torch.where(rms > 0, mean_c / (elements * rms.clamp_min(1e-30) * target.scale), 0.0)
    share = rms / target.scale / elements
    return StabilityTerm(
        rms / target.scale * mean_c,
        per_norm * norm_grad_A - share * dA,
        per_norm * norm_grad_B - share * dB,
    )


def _directed_sums(
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    target: StabilityTarget,
    config: StabilityConfig,
    weights: str,
    tile_elements: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """sum_ij T tanh(a D) w(D) with w = 1 ("ones") or D^2 ("squares"), and its gradients in A, B."""
    a = config.temperature / target.rms
    rows = max(1, tile_elements // A.shape[1])
    total = torch.zeros((), dtype=A.dtype, device=A.device)
    grad_A, grad_B = torch.zeros_like(A), torch.empty_like(B)
    left, right = target.left.to(A.dtype), target.right.to(A.dtype)
    scaled_A = scaling * A
    for start in range(0, B.shape[0], rows):
        tile = slice(start, start + rows)
        D = B[tile] @ scaled_A
        T = (left[tile] @ right).mul_(a).tanh_()
        t = (a * D).tanh_()
        if weights == "ones":
            total += (T * t).sum()
            slope = T.mul_(1 - t * t).mul_(a)
        else:
            signed = T * t
            total += (signed * D * D).sum()
            # d(T t D^2)/dD = a T (1 - t^2) D^2 + 2 T t D
            slope = T.mul_(1 - t * t).mul_(a).mul_(D).add_(signed, alpha=2).mul_(D)
        grad_B[tile] = slope @ scaled_A.T
        grad_A.addmm_(B[tile].T, slope, alpha=scaling)
    return total, grad_A, grad_B
