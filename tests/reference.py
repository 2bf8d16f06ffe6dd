"""The maths of METHOD.md, written out literally and slowly. Fast code is held to this file.

Everything is float64, dense, and differentiated by autograd; no tile, no factor, no closed form.
"""

from __future__ import annotations

import torch
from torch import Tensor


def delta(A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """D = s B A."""
    return scaling * B @ A


def stability_loss(
    A: Tensor,
    B: Tensor,
    scaling: float,
    S: Tensor,
    scale: float,
    temperature: float,
    reading: str,
    direction: bool = True,
    magnitude: bool = True,
    T: Tensor | None = None,
) -> Tensor:
    """L_s of one layer, Eq. 4 in both readings; a = temperature / rms(S).

    T: what is taken for tanh(a S); for coded and sampled histories.
    """
    D = delta(A, B, scaling)
    rms = S.pow(2).mean().sqrt()
    c = torch.ones_like(D)
    if direction and float(rms) > 0:
        a = temperature / rms
        T = torch.tanh(a * S) if T is None else T
        c = 1 - T * torch.tanh(a * D)
    if not magnitude:
        return c.mean()
    if reading == "elementwise":
        return (c * D**2).mean() / scale**2
    norm = torch.sqrt((D**2).sum()) / D.numel() ** 0.5
    return norm / scale * c.mean()


def best_rank(S: Tensor, rank: int) -> Tensor:
    """The best rank-k approximation of a dense matrix (Eckart-Young)."""
    U, sigma, Vh = torch.linalg.svd(S, full_matrices=False)
    return U[:, :rank] @ torch.diag(sigma[:rank]) @ Vh[:rank]


def sign_agreement(approximation: Tensor, S: Tensor) -> float:
    """Share of sum |S| that lies where the approximation has the sign of S; 1 for S = 0."""
    weight = S.abs()
    right = weight[approximation.sign() == S.sign()].sum()
    return float(right / weight.sum()) if float(weight.sum()) > 0 else 1.0


def ridge_head(features: Tensor, targets: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """argmin |[F 1] W - Y|^2 + mu |W without bias|^2 over all samples at once; (weight, bias)."""
    F = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], dim=1)
    d = features.shape[1]
    mu = ridge * features.pow(2).sum() / d
    penalty = torch.diag(torch.cat([mu.expand(d), torch.full((1,), 1e-9 * len(features))]).double())
    W = torch.linalg.inv(F.T @ F + penalty) @ F.T @ targets
    return W[:d].T, W[d]


def left_out_scores(
    gram: Tensor, moment: Tensor, features: Tensor, targets: Tensor, weights: Tensor, mu: float
) -> Tensor:
    """Row i: the scores of sample i by the ridge head solved on everything but sample i.

    gram, moment: sums over all samples, these N and earlier ones. mu: absolute, held fixed.
    """
    F = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], dim=1)
    d = features.shape[1]
    ridge = torch.full((d,), mu, dtype=torch.float64)
    penalty = torch.diag(torch.cat([ridge, 1e-9 * gram[d, d].reshape(1)]))
    rows = []
    for f, y, w in zip(F, targets, weights, strict=True):
        G = gram - w * torch.outer(f, f)
        Q = moment - w * torch.outer(f, y)
        rows.append(f @ torch.linalg.solve(G + penalty, Q))
    return torch.stack(rows)


def transport_map(old: Tensor, new: Tensor, ridge: float) -> Tensor:
    """argmin_T |F T - F'|^2 + mu |T - I|^2, column by column from the normal equations."""
    one = torch.ones(len(old), 1, dtype=old.dtype)
    F, G = torch.cat([old, one], dim=1), torch.cat([new, one], dim=1)
    size = F.shape[1]
    mu = ridge * old.pow(2).sum() / (size - 1)
    eye = torch.eye(size, dtype=old.dtype)
    columns = [
        torch.linalg.inv(F.T @ F + mu * eye) @ (F.T @ G[:, j] + mu * eye[:, j]) for j in range(size)
    ]
    return torch.stack(columns, dim=1)
