"""AdamW (Loshchilov, Hutter 2019), to the bit what torch.optim computes on a CPU.

torch's own loads its compiler at the first step: 0.8 s of a session that may have two. Moments exist
only for what was given here: the adapters, a linear head, norms on request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import nn

T = TypeVar("T", bound=torch.Tensor)
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class AdamW:
    """state: parameter -> step (float32 scalar), exp_avg, exp_avg_sq; empty before its first step.

    times: parameter -> its rate in learning rates, 1 where it says nothing.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        weight_decay: float = 0.0,
        times: Mapping[nn.Parameter, float] | None = None,
    ) -> None:
        self.parameters = list(parameters)
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.times = dict(times or {})
        self.state: dict[nn.Parameter, dict[str, torch.Tensor]] = {p: {} for p in self.parameters}

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One step on every parameter that has a gradient."""
        for group in by_device(p for p in self.parameters if p.grad is not None):
            self._step(group)

    def _step(self, parameters: list[nn.Parameter]) -> None:
        """All of them are on one device; an operation on all at once is one launch there."""
        steps, rates = [], []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["step"] += 1
            steps.append(float(state["step"]))
            rates.append(self.learning_rate * self.times.get(parameter, 1.0))
        values: list[torch.Tensor] = list(parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        means = [self.state[p]["exp_avg"] for p in parameters]
        squares = [self.state[p]["exp_avg_sq"] for p in parameters]
        if self.weight_decay:
            torch._foreach_mul_(values, [1 - rate * self.weight_decay for rate in rates])
        torch._foreach_lerp_(means, gradients, 1 - BETA1)
        torch._foreach_mul_(squares, BETA2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - BETA2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, [(1 - BETA2**step) ** 0.5 for step in steps])
        torch._foreach_add_(roots, EPSILON)
        sizes = [-rate / (1 - BETA1**step) for rate, step in zip(rates, steps, strict=True)]
        torch._foreach_addcdiv_(values, means, roots, sizes)


def by_device(tensors: Iterable[T]) -> list[list[T]]:
    """The tensors of each device, in order: torch takes lists of them one by one where they are mixed."""
    groups: dict[torch.device, list[T]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.device, []).append(tensor)
    return list(groups.values())
