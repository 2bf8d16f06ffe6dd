"""Adapters in the forward pass, by hooks: the module tree, its names and its weights stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from edge_pslora.config import FactorForm
from edge_pslora.core.factor_forms import rounded
from edge_pslora.core.lora import init_lora, lora_delta
from edge_pslora.core.replay import low_rank_update
from edge_pslora.training.targets import Target, as_weight


@dataclass(frozen=True)
class Adapter:
    """The trainable pair of one target: A [r, in], B [out, r]; D = scaling * B A."""

    target: Target
    A: nn.Parameter
    B: nn.Parameter
    scaling: float

    def delta(self) -> torch.Tensor:
        """D [out, in], detached, with the bits that a receiver of A and B gets (core.replay)."""
        A, B = self.A.detach().cpu().numpy(), self.B.detach().cpu().numpy()
        return torch.from_numpy(low_rank_update(B, A, self.scaling))

    def round_to(self, form: FactorForm) -> None:
        """A and B become what can be shipped in that form."""
        with torch.no_grad():
            A, B = self.A.detach().cpu().numpy(), self.B.detach().cpu().numpy()
            self.A.copy_(torch.from_numpy(rounded(form, A)))
            self.B.copy_(torch.from_numpy(rounded(form, B.T)).T)

    def on_cpu(self) -> Adapter:
        """The same values there; itself where it is there."""
        if self.A.device.type == "cpu":
            return self
        A, B = self.A.detach().cpu(), self.B.detach().cpu()
        return Adapter(self.target, nn.Parameter(A), nn.Parameter(B), self.scaling)


def new_adapters(
    targets: tuple[Target, ...],
    rank: int,
    scaling: float,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> dict[str, Adapter]:
    """Fresh adapters with zero updates, by target name; the same values on every device."""
    adapters = {}
    for target in targets:
        A, B = init_lora(*target.shape, rank, generator)
        pair = nn.Parameter(A.to(device)), nn.Parameter(B.to(device))
        adapters[target.name] = Adapter(target, *pair, scaling)
    return adapters


@contextmanager
def injected(model: nn.Module, adapters: Mapping[str, Adapter]) -> Iterator[None]:
    """Within the block the model computes with W + D for every adapter; afterwards with W again."""
    with ExitStack() as stack:
        for name, adapter in adapters.items():
            module = model.get_submodule(name)
            stack.enter_context(_injection(module, adapter))
        yield


_Update = Callable[[nn.Module, torch.Tensor, Adapter], torch.Tensor]


def _linear_update(_: nn.Module, x: torch.Tensor, adapter: Adapter) -> torch.Tensor:
    return F.linear(F.linear(x, adapter.A), adapter.B) * adapter.scaling


def _conv_update(module: nn.Module, x: torch.Tensor, adapter: Adapter) -> torch.Tensor:
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    if module.padding_mode != "zeros":
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
    padding = module.padding if module.padding_mode == "zeros" else 0
    A = adapter.A.reshape(-1, *module.weight.shape[1:])
    if isinstance(module, nn.Conv1d):
        low = F.conv1d(x, A, None, module.stride, padding, module.dilation)
        return F.conv1d(low, adapter.B[:, :, None]) * adapter.scaling
    low = F.conv2d(x, A, None, module.stride, padding, module.dilation)
    return F.conv2d(low, adapter.B[:, :, None, None]) * adapter.scaling


def _embedding_update(module: nn.Module, x: torch.Tensor, adapter: Adapter) -> torch.Tensor:
    return F.linear(F.embedding(x, adapter.A.T), adapter.B) * adapter.scaling


@contextmanager
def _hooked(module: nn.Module, adapter: Adapter, update: _Update) -> Iterator[None]:
    def add_update(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor
    ) -> torch.Tensor:
        x = args[0] if args else next(iter(kwargs.values()))  # "input", or "x" of Conv1D
        return output + update(module, x, adapter)

    handle = module.register_forward_hook(add_update, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _AddDelta(nn.Module):
    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        delta = lora_delta(self.adapter.A, self.adapter.B, self.adapter.scaling)
        # a base in bf16 stays one: what comes out has the type of what went in
        return (weight + as_weight(delta, self.adapter.target, weight.shape)).to(weight.dtype)


@contextmanager
def _parametrized(module: nn.Module, adapter: Adapter, tensor_name: str) -> Iterator[None]:
    # for modules that do more with the weight than the plain layer, or whose weight others read
    order = [name for name, _ in module.named_parameters(recurse=False, remove_duplicate=False)]
    parametrize.register_parametrization(module, tensor_name, _AddDelta(adapter))
    try:
        yield
    finally:
        parametrize.remove_parametrizations(module, tensor_name, leave_parametrized=False)
        for name in order:  # torch puts the weight back behind the others
            parameter = module.get_parameter(name)
            delattr(module, name)
            module.register_parameter(name, parameter)


# what a kind computes, and the class that computes just that
_HOOKS: dict[str, tuple[_Update, type[nn.Module]]] = {
    "linear": (_linear_update, nn.Linear),
    "conv1d": (_conv_update, nn.Conv1d),
    "conv2d": (_conv_update, nn.Conv2d),
    "embedding": (_embedding_update, nn.Embedding),
}


def _injection(module: nn.Module, adapter: Adapter) -> AbstractContextManager[None]:
    kind = adapter.target.kind
    if kind == "transposed_linear":
        return _hooked(module, adapter, _linear_update)
    if kind in _HOOKS:
        update, plain = _HOOKS[kind]
        # a subclass may pad its input, scale its output or standardise its weight: a hook sees none of it
        if type(module).forward is plain.forward:
            return _hooked(module, adapter, update)
    # MultiheadAttention reads its weights itself and never calls out_proj: a hook would be dead
    return _parametrized(module, adapter, "in_proj_weight" if kind == "mha_in_proj" else "weight")
