"""Modules that answer without computing: what is skipped of a model whose lower part is known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

CallId = tuple[str, int]  # a module's name and which of its calls in one forward pass, from 0
# (the module's forward, its arguments) -> what it returns in this call
Answer = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


IdleCall = tuple[Any, ...]  # a function and the arguments that it is given besides a stand-in


class StandIn(torch.Tensor):
    """A tensor in the place of one that is not computed: its shape, and one number for all its values.

    What a model makes of it outside of its modules is thrown away. Where all its values are NaN, it
    is seen which functions give nothing but NaN in the same shape: `idle`. Where these are known, they
    give back what they are given, and take no time; all other functions compute.
    """

    idle: set[IdleCall] | frozenset[IdleCall]

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        call = _idle_call(func, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            if call is not None and isinstance(args[0].idle, frozenset) and call in args[0].idle:
                return args[0]
            output = func(*args, **kwargs)
            if (
                call is not None
                and isinstance(args[0].idle, set)
                and _says_nothing(output, args[0])
            ):
                args[0].idle.add(call)
                return stand_in(output, args[0].idle)
        return output


def stand_in(values: torch.Tensor, idle: set[IdleCall] | frozenset[IdleCall]) -> StandIn:
    """idle: those that are known; a set: to be added to."""
    tensor = values.as_subclass(StandIn)
    tensor.idle = idle
    return tensor


def _idle_call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> IdleCall | None:
    """None: not a function of one stand-in and of numbers."""
    if not args or not isinstance(args[0], StandIn):
        return None
    others = (*args[1:], *(part for pair in sorted(kwargs.items()) for part in pair))
    if not all(isinstance(part, str | int | float | bool | None) for part in others):
        return None
    return (func, *others)


def _says_nothing(output: Any, given: torch.Tensor) -> bool:
    return (
        isinstance(output, torch.Tensor)
        and output.shape == given.shape
        and output.dtype == given.dtype
        and bool(output.isnan().all())
    )


@contextmanager
def answering(model: nn.Module, answers: Mapping[CallId, Answer]) -> Iterator[None]:
    """Within the block, for one forward pass, these calls are answered so; all others compute."""
    by_module: dict[str, dict[int, Answer]] = defaultdict(dict)
    for (name, index), answer in answers.items():
        by_module[name][index] = answer
    with ExitStack() as stack:
        for name, wanted in by_module.items():
            stack.enter_context(_replaced(model.get_submodule(name), wanted))
        yield


@contextmanager
def _replaced(module: nn.Module, answers: Mapping[int, Answer]) -> Iterator[None]:
    # the forward that is in force, which may be another one's replacement
    own, before = module.__dict__.get("forward"), module.forward
    calls = 0

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        answer = answers.get(calls - 1)
        return before(*args, **kwargs) if answer is None else answer(before, args, kwargs)

    object.__setattr__(module, "forward", forward)
    try:
        yield
    finally:
        if own is None:
            object.__delattr__(module, "forward")
        else:
            object.__setattr__(module, "forward", own)


def the_tensor(output: Any) -> torch.Tensor | None:
    """The one tensor of a module's output: itself, or beside Nones in a tuple or list; else None."""
    if isinstance(output, torch.Tensor):
        return output
    if type(output) in (tuple, list):
        tensors = [part for part in output if part is not None]
        if len(tensors) == 1 and isinstance(tensors[0], torch.Tensor):
            return tensors[0]
    return None


def with_tensor(output: Any, tensor: torch.Tensor) -> Any:
    """An output of the same form around another tensor."""
    if isinstance(output, torch.Tensor):
        return tensor
    return type(output)(None if part is None else tensor for part in output)
