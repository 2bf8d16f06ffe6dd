"""Finding the Linear that a network ends with, and cutting it off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from edge_pslora.errors import ModelError
from edge_pslora.models.probe import run_once

HEAD_NAMES = frozenset({"fc", "classifier", "head", "score", "out"})


def last_executed(
    model: nn.Module, inputs: Mapping[str, torch.Tensor], call: nn.Module, where: str
) -> tuple[str | None, object]:
    """(dotted name of the module without children that runs last, output of `call`).

    call: the module to run on the inputs, `model` or a wrapper of it.
    """
    order: list[str] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, _o, name=name: order.append(name))
        for name, module in model.named_modules()
        if name and not any(True for _ in module.children())
    ]
    try:
        output = run_once(call, inputs, where)
    finally:
        for handle in handles:
            handle.remove()
    return (order[-1] if order else None), output


def find_classifier(model: nn.Module, inputs: Mapping[str, torch.Tensor], where: str) -> str | None:
    """Name of the Linear in a transformers classification model that yields its logits [N, C].

    None where the logits are not a linear function of one Linear's input (two averaged heads, a
    scaled output): shown by running the model with and without it.
    """
    size = int(getattr(model.config, "num_labels", 0))
    order: list[str] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, _o, name=name: order.append(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == size
    ]
    try:
        before: Any = run_once(model, inputs, where)
    finally:
        for handle in handles:
            handle.remove()
    if not order:
        return None
    linear = cut(model, order[-1])
    after: Any = run_once(model, inputs, where)
    model.set_submodule(order[-1], linear)
    features = after.logits
    if features.shape[-1] != linear.in_features:
        return None
    again = nn.functional.linear(features, linear.weight, linear.bias)
    same = again.shape == before.logits.shape and torch.allclose(
        again, before.logits, rtol=1e-4, atol=1e-5
    )
    return order[-1] if same else None


def cut(model: nn.Module, name: str) -> nn.Linear:
    """Replaces the Linear of that name by Identity, in place, and returns it.

    Raises:
        ModelError: there is no Linear of that name.
    """
    module = dict(model.named_modules()).get(name)
    if not name or not isinstance(module, nn.Linear):
        linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
        raise ModelError(
            f"head module {name!r}",
            expected="the dotted name of a Linear in the model",
            found="no such module" if module is None else type(module).__name__,
            remedy=f"name one of {', '.join(linears[-3:])}" if linears else "leave the option out",
        )
    model.set_submodule(name, nn.Identity())
    return module
