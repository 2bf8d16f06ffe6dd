"""What a session has changed so far, parameter by parameter, and gradients in the same coordinates.

Penalties on single weights (EWC, SI, L2-SP) were made for full fine-tuning. With adapters their
parameters are the weights that the adapters change: theta = W0 + M_{t-1} + D_t, and, where the head is
trained, its rows of earlier labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from edge_pslora.compare.rule import Round, live_update
from edge_pslora.training.targets import as_matrix

Tensors = dict[str, torch.Tensor]


def head_start(round: Round) -> Tensors:
    """The head's rows of earlier labels, copied, by "head.weight" and "head.bias"."""
    return {f"head.{n}": p.detach()[: round.known].clone() for n, p in round.head.items()}


def changes(round: Round, start: Tensors) -> Tensors:
    """theta - theta_{t-1} of all parameters, with gradients. start: from `head_start` in `begin`."""
    found = {name: live_update(adapter) for name, adapter in round.adapters.items()}
    for name, parameter in round.head.items():
        found[f"head.{name}"] = parameter[: round.known] - start[f"head.{name}"]
    return found


@contextmanager
def weights_with_gradients(round: Round) -> Iterator[None]:
    """Within the block, a backward pass leaves the gradient by W + D in the weights' own `grad`."""
    for weight in round.weights.values():
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in round.weights.values():
            weight.requires_grad_(False)
            weight.grad = None


def weight_gradients(round: Round) -> Tensors:
    """The gradients that the targets' weights now have, as [out, in]."""
    found = {}
    for name, weight in round.weights.items():
        assert weight.grad is not None
        found[name] = as_matrix(weight.grad, round.adapters[name].target)
    return found


def quadratic(
    importance: Mapping[str, torch.Tensor], change: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """sum_k Omega_k (theta_k - theta*_k)^2 over what has an importance."""
    terms = [(importance[name] * change[name].square()).sum() for name in importance]
    return torch.stack(terms).sum()


def nbytes(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())
