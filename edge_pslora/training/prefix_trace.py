"""The calls of a forward pass that come before everything that is trained, found by autograd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edge_pslora.models.types import Backbone
from edge_pslora.training.stand_ins import CallId, the_tensor, with_tensor


@dataclass(frozen=True)
class Call:
    """One finished call of a module. cost: multiplications in it, those of attention left out."""

    id: CallId
    output: Any
    cost: float


@dataclass(frozen=True)
class Trace:
    """calls: those that no trained parameter can reach and whose output is one tensor, in order, none
    inside another; cost: of the whole pass."""

    calls: tuple[Call, ...]
    cost: float


def trace(
    backbone: Backbone, trained: Sequence[nn.Parameter], batch: Mapping[str, torch.Tensor]
) -> Trace:
    """Runs the batch through the backbone. Whatever way a trained parameter is read (its module's call,
    a parent's functional call, a tied weight), what depends on it requires a gradient, and the calls
    end before the first that does."""
    recorder = _Recorder()
    model = backbone.model
    with _learning(trained), torch.enable_grad(), recorder.watching(model):
        backbone(**batch)
    return Trace(tuple(recorder.outermost()), sum(recorder.costs.values()))


@contextmanager
def _learning(trained: Sequence[nn.Parameter]) -> Iterator[None]:
    before = [parameter.requires_grad for parameter in trained]
    for parameter in trained:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, value in zip(trained, before, strict=True):
            parameter.requires_grad_(value)


class _Recorder:
    def __init__(self) -> None:
        self.costs: dict[int, float] = {}
        self._parents: dict[int, int | None] = {}
        self._stack: list[tuple[int, CallId]] = []
        self._counts: Counter[str] = Counter()
        self._free: dict[int, Call] = {}
        self._reached = False

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        handles = []
        for name, module in model.named_modules():
            if name:
                handles.append(module.register_forward_pre_hook(self._enter(name)))
                handles.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Any:
        def enter(module: nn.Module, args: Any) -> None:
            number = len(self._parents)
            self._parents[number] = self._stack[-1][0] if self._stack else None
            self._stack.append((number, (name, self._counts[name])))
            self._counts[name] += 1

        return enter

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        number, call = self._stack.pop()
        self.costs[number] = _products(module, output)
        if any(part.requires_grad for part in _tensors(output)):
            self._reached = True
        elif not self._reached and (tensor := the_tensor(output)) is not None:
            # a clone, because the next module may write into it
            self._free[number] = Call(call, with_tensor(output, tensor.detach().clone()), 0.0)

    def outermost(self) -> Iterator[Call]:
        for number in sorted(self._free):  # by when they began
            if self._parents[number] not in self._free:
                call = self._free[number]
                yield Call(call.id, call.output, self._inside(number))

    def _inside(self, number: int) -> float:
        children = (n for n, parent in self._parents.items() if parent == number)
        return self.costs.get(number, 0.0) + sum(self._inside(child) for child in children)


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from _tensors(part)
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _tensors(part)


def _products(module: nn.Module, output: Any) -> float:
    """Multiplications of a module's own weights: outputs times inputs of each."""
    if isinstance(module, nn.Embedding):
        return 0.0
    size = sum(part.numel() for part in _tensors(output))
    weights = [p for p in module.parameters(recurse=False) if p.dim() >= 2]
    return float(sum(size * p.numel() / max(p.shape[0], 1) for p in weights))
