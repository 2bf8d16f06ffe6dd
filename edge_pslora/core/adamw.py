"""AdamW (Loshchilov, Hutter 2019), to the bit what torch.optim computes on a CPU.

torch's own loads its compiler at the first step: 0.8 s of a session that may have two. Moments exist
only for what was given here: the adapters, a linear head, norms on request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

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
        for parameter in self.parameters:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["step"] += 1
            rate = self.learning_rate * self.times.get(parameter, 1.0)
            if self.weight_decay:
                parameter.mul_(1 - rate * self.weight_decay)
            step = float(state["step"])
            mean, square = state["exp_avg"], state["exp_avg_sq"]
            mean.lerp_(parameter.grad, 1 - BETA1)
            square.mul_(BETA2).addcmul_(parameter.grad, parameter.grad, value=1 - BETA2)
            root = (square.sqrt() / (1 - BETA2**step) ** 0.5).add_(EPSILON)
            parameter.addcdiv_(mean, root, value=-rate / (1 - BETA1**step))
