"""RanPAC's head: ridge regression on a random ReLU projection (arXiv 2307.02251, Eq. 6, 7 and algorithm 1).

h = relu(f W) with W [d, M] standard normal, G = sum h h^T, Q = sum h y^T over all sessions, head
(G + ridge I)^-1 Q, no bias. ridge: of 10^-8 ... 10^8 the one that, fitted to the first 80 % of the session's
samples, has the least squared error on the others; the session's own, as in the authors' code. The paper has M
= 10,000; here M = 2,000, whose G has 16 MB as float32, what the product allows a head.
"""

from __future__ import annotations

import torch

UNITS = 2000
RIDGES = tuple(10.0**k for k in range(-8, 9))
FITTED = 0.8


def random_projection(feature_size: int, units: int, generator: torch.Generator) -> torch.Tensor:
    """W [d, M], standard normal, float32."""
    return torch.randn(feature_size, units, generator=generator)


def project(features: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """relu(f W): [N, d] and [d, M] give [N, M]."""
    return torch.relu(features @ projection)


def chosen_ridge(h: torch.Tensor, columns: torch.Tensor) -> float:
    """By the last fifth of the session's samples; h [N, M], one-hot columns [N, C], float64."""
    fitted = int(len(h) * FITTED)
    gram, moment = h[:fitted].T @ h[:fitted], h[:fitted].T @ columns[:fitted]
    values, vectors = torch.linalg.eigh(gram)
    left = h[fitted:] @ vectors
    rotated = vectors.T @ moment
    values = values.clamp_min(0.0)[:, None]
    errors = [
        float((left @ (rotated / (values + ridge)) - columns[fitted:]).square().mean())
        for ridge in RIDGES
    ]
    return RIDGES[min(range(len(RIDGES)), key=errors.__getitem__)]


def solve_ridge(gram: torch.Tensor, moment: torch.Tensor, ridge: float) -> torch.Tensor:
    """weight [C, M], float32."""
    eye = torch.eye(gram.shape[0], dtype=gram.dtype)
    solution: torch.Tensor = torch.linalg.solve(gram + ridge * eye, moment)
    return solution.T.float().contiguous()
