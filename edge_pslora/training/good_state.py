"""The last state of training that was finite, in memory, and the way back to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from edge_pslora.core.adamw import by_device
from edge_pslora.training.adamw import AdamW

State = list[tuple[torch.Tensor, dict[str, torch.Tensor]]]  # of each parameter: value, optimiser's


def is_finite(parameters: Sequence[nn.Parameter], optimizer: AdamW) -> bool:
    """Whether every value, and every moment that the optimiser keeps of it, is a number.

    A moment that is infinite gives steps of zero: the loss stays a number, and nothing is learned.
    """
    return bool(torch.isfinite(nn.utils.get_total_norm(_tensors(parameters, optimizer))))


def remember(
    parameters: Sequence[nn.Parameter], optimizer: AdamW, before: State | None = None
) -> State:
    """A copy of the parameters and of what the optimiser keeps of them.

    before: an earlier one of the same, whose memory is written anew.
    """
    states = [optimizer.state[p] for p in parameters]
    if before is None or any(
        kept.keys() != s.keys() for (_, kept), s in zip(before, states, strict=True)
    ):
        return [
            (p.detach().clone(), {name: v.clone() for name, v in state.items()})
            for p, state in zip(parameters, states, strict=True)
        ]
    copies, values = [], []
    for parameter, state, (copy, kept) in zip(parameters, states, before, strict=True):
        copies += [copy, *kept.values()]
        values += [parameter.detach(), *state.values()]
    # two lists that are parted alike: a value and its copy are on one device
    for some, others in zip(by_device(copies), by_device(values), strict=True):
        torch._foreach_copy_(some, others)
    return before


def go_back(state: State, parameters: Sequence[nn.Parameter], optimizer: AdamW) -> None:
    """Parameters and optimiser are as they were when `state` was taken; it can be used again."""
    for parameter, (value, moments) in zip(parameters, state, strict=True):
        with torch.no_grad():
            parameter.copy_(value)
        optimizer.state[parameter] = {name: v.clone() for name, v in moments.items()}


def _tensors(parameters: Iterable[nn.Parameter], optimizer: AdamW) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for parameter in parameters:
        found.append(parameter.detach())
        kept = optimizer.state[parameter].items()
        found += [v.detach().float() for name, v in kept if name != "step"]
    return found
