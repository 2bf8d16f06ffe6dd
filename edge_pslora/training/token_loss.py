"""The loss of a language model without its logits [N, T, V]: so many positions at a time as fit the cache.

The gradient of the cross-entropy at a position is softmax(logits) - one-hot, known as soon as its
logits are. So both are computed chunk by chunk in the forward pass, and what is kept is the gradient of
the states before the output layer, N x T x d. The output layer itself is frozen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from edge_pslora.core.scores import IDS, MASK
from edge_pslora.models.types import Backbone
from edge_pslora.tasks.types import Inputs
from edge_pslora.training.inject import Adapter
from edge_pslora.training.replacing import replaced

LARGE = 32_000_000  # bytes of a batch's logits from which on they are not made at once
CHUNK = 8_000_000  # bytes of those that are


@contextmanager
def states_out(
    backbone: Backbone, adapters: Mapping[str, Adapter], probe: dict[str, torch.Tensor]
) -> Iterator[nn.Linear | None]:
    """Within the block the backbone yields the states [N, T, d] before its output layer, which is given.

    None, and nothing changes, where the logits are more than that layer's output (scaled or capped),
    or where it is trained: that is tried on the probe.
    """
    layer = _output_layer(backbone.model, adapters)
    if layer is not None:
        with torch.no_grad():
            logits = backbone(**probe)
            with replaced(layer, _itself):
                states = backbone(**probe)
            fits = states.shape[-1] == layer.in_features
            if not fits or not torch.equal(layer(states.to(layer.weight.dtype)).float(), logits):
                layer = None
    if layer is None:
        yield None
        return
    with replaced(layer, _itself):
        yield layer


def chunked_token_loss(states: torch.Tensor, layer: nn.Linear, inputs: Inputs) -> torch.Tensor:
    """tasks.language's loss for states [N, T, d]: mean cross-entropy at 0..T-2 against tokens 1..T-1."""
    kept = (inputs[MASK][:, 1:] != 0).flatten()
    wanted = inputs[IDS][:, 1:].flatten()[kept]
    rows = states[:, :-1].flatten(0, 1)[kept]
    loss: torch.Tensor = _TokenLoss.apply(rows, layer.weight, layer.bias, wanted)  # type: ignore[no-untyped-call]
    return loss


class _TokenLoss(torch.autograd.Function):
    """Mean cross-entropy of rows [M, d] through weight [V, d] and bias [V] or None; wanted int64 [M]."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        wanted: torch.Tensor,
    ) -> torch.Tensor:
        size = max(1, CHUNK // (4 * len(weight)))
        gradient = torch.empty_like(rows)
        total = torch.zeros((), device=rows.device)
        for start in range(0, len(rows), size):
            part, right = rows[start : start + size], wanted[start : start + size]
            logits = F.linear(part.to(weight.dtype), weight, bias).float()
            total += F.cross_entropy(logits, right, reduction="sum")
            error = logits.softmax(1)
            error[torch.arange(len(right), device=right.device), right] -= 1
            gradient[start : start + size] = error.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        ctx.count = len(rows)
        return total / len(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * (gradients[0] / ctx.count), None, None, None


def _output_layer(model: nn.Module, adapters: Mapping[str, Adapter]) -> nn.Linear | None:
    """transformers' name for it, if it is a plain Linear that nothing trains."""
    find = getattr(model, "get_output_embeddings", None)
    layer = None if find is None else find()
    if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward:
        return None
    trained = any(model.get_submodule(name) is layer for name in adapters)
    return None if trained or layer.weight.requires_grad else layer


def _itself(states: torch.Tensor) -> torch.Tensor:
    return states
