"""Training steps through a base in bf16; adapters, head, losses and optimiser stay in float32.

What is computed in which precision: products of frozen weights, and what lies between them, in bf16;
normalisation with its own float32 parameters; attention in float32, for torch's backward pass is four
times slower in bf16; features leave as float32. The low-rank products are done by hand, in bf16 and added
in place: autograd's way through them makes six more passes over the activations. Layers below all that is
trained (`lower`) stay in float32: kept on the disk or computed again, they must come out the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from edge_pslora.models.types import Backbone
from edge_pslora.training.half_weights import halvable, halved
from edge_pslora.training.inject import Adapter, injected
from edge_pslora.training.layout import is_channels_last, is_laid, pictures_last
from edge_pslora.training.placing import device_of
from edge_pslora.training.replacing import replaced
from edge_pslora.training.targets import is_transposed_linear

HALF = torch.bfloat16


@contextmanager
def half_base(
    backbone: Backbone, adapters: Mapping[str, Adapter], lower: Sequence[str] = ()
) -> Iterator[None]:
    """Within the block the backbone computes with W + D in bf16; afterwards with W as it was before.

    lower: names of modules that compute in float32 as ever, none inside another or adapted.
    """
    model, laid = backbone.model, is_laid(backbone)
    below = {name: model.get_submodule(name) for name in lower}
    full = {id(p) for module in below.values() for p in module.parameters()}
    own = {name: a for name, a in adapters.items() if _is_product(model.get_submodule(name), a)}
    others = {name: a for name, a in adapters.items() if name not in own}
    with ExitStack() as stack:
        stack.enter_context(halved([p for p in halvable(model) if id(p) not in full]))
        for module in below.values():
            stack.enter_context(replaced(module, _full_forward(module.forward, laid)))
        for name, adapter in own.items():
            module = model.get_submodule(name)
            stack.enter_context(replaced(module, _low_rank_forward(module, adapter)))
        stack.enter_context(injected(model, others))
        kind = device_of(model).type
        stack.enter_context(replaced(backbone, _half_forward(backbone.forward, kind)))
        stack.enter_context(FullPrecision())
        yield


def _half_forward(forward: Callable[..., torch.Tensor], kind: str) -> Callable[..., torch.Tensor]:
    def half_forward(**inputs: torch.Tensor) -> torch.Tensor:
        # where a module mixes bf16 and float32, autocast says which wins
        with torch.autocast(kind, HALF):
            return forward(**pictures_last(inputs)).float()

    return half_forward


def _full_forward(forward: Callable[..., Any], laid: bool) -> Callable[..., Any]:
    """In float32 and, unless pictures are laid out with channels last for the whole session, in torch's
    own layout, as outside of training; pictures leave as they came."""

    def full_forward(*args: Any, **kwargs: Any) -> Any:
        if laid:
            with torch.autocast("cpu", enabled=False):
                return forward(*map(_full, args), **{k: _full(v) for k, v in kwargs.items()})
        values = (*args, *kwargs.values())
        with torch.autocast("cpu", enabled=False):
            output = forward(*map(_plain, args), **{k: _plain(v) for k, v in kwargs.items()})
        if any(is_channels_last(value) for value in values) and isinstance(output, torch.Tensor):
            return (
                output.contiguous(memory_format=torch.channels_last)
                if output.dim() == 4
                else output
            )
        return output

    return full_forward


def _plain(value: Any) -> Any:
    value = _full(value)
    return value.contiguous() if is_channels_last(value) else value


class FullPrecision(TorchFunctionMode):
    """The two operations that are no faster in bf16 on a CPU, in float32 there whatever they are given."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        wanted = func is F.scaled_dot_product_attention or (
            func is F.conv2d and _strided_depthwise(*args, **kwargs)
        )
        values = (*args, *kwargs.values())
        if not wanted or not any(_is_half(v) and v.device.type == "cpu" for v in values):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):  # it would take them back to bf16
            full = func(*map(_full, args), **{k: _full(v) for k, v in kwargs.items()})
        return full.to(HALF)


def _strided_depthwise(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    """oneDNN has no kernel for its backward pass in bf16: 25 ms in place of 0.5 (MobileNetV1)."""
    return (
        groups == input.shape[1] > 1 and (max(stride) if isinstance(stride, tuple) else stride) > 1
    )


def _is_half(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == HALF


def _full(value: Any) -> Any:
    return value.float() if _is_half(value) else value


def _is_product(module: nn.Module, adapter: Adapter) -> bool:
    """Whether the layer is one matrix product: a Linear, or a convolution with a kernel of one pixel."""
    if is_transposed_linear(module):
        return True
    if adapter.target.kind == "linear":
        return type(module).forward is nn.Linear.forward
    return (
        isinstance(module, nn.Conv2d)
        and type(module).forward is nn.Conv2d.forward
        and module.kernel_size == (1, 1)
        and not any(module.padding if isinstance(module.padding, tuple) else ())
    )


def _low_rank_forward(module: nn.Module, adapter: Adapter) -> Callable[..., torch.Tensor]:
    weight, bias = module.get_parameter("weight"), getattr(module, "bias", None)

    def product(x: torch.Tensor) -> torch.Tensor:
        matrix = weight.T if adapter.target.kind == "transposed_linear" else weight.flatten(1)
        result: torch.Tensor = _LowRankProduct.apply(  # type: ignore[no-untyped-call]
            x, matrix, bias, adapter.A, adapter.B, adapter.scaling
        )
        return result

    def linear(*args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        return product(args[0] if args else next(iter(kwargs.values())))

    def convolution(input: torch.Tensor) -> torch.Tensor:
        assert isinstance(module, nn.Conv2d)
        down, right = module.stride
        x = input if (down, right) == (1, 1) else input[:, :, ::down, ::right]
        return product(x.movedim(-3, -1)).movedim(-1, -3)

    return convolution if isinstance(module, nn.Conv2d) else linear


class _LowRankProduct(torch.autograd.Function):
    """x W^T + b + s x A^T B^T for x [..., in], W [out, in], b [out] or None, A [r, in], B [out, r]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        A: torch.Tensor,
        B: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(HALF)
        A_half, B_half = A.to(HALF), (B * scaling).to(HALF)
        low = rows @ A_half.T
        output = F.linear(rows, weight, bias)
        output.addmm_(low, B_half.T)
        ctx.save_for_backward(rows, weight, low, A_half, B_half)
        ctx.scaling, ctx.shape, ctx.dtype = scaling, x.shape, x.dtype
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, low, A_half, B_half = ctx.saved_tensors
        given = gradients[0].reshape(-1, gradients[0].shape[-1]).to(HALF)
        given_low = given @ B_half
        # the order of factors in which the long axis is the one summed over twice is the faster one
        gradient_B = (low.T @ given).T.float() * ctx.scaling
        gradient_A = (given_low.T @ rows).float()
        gradient_x = None
        if ctx.needs_input_grad[0]:
            gradient_x = given @ weight
            gradient_x.addmm_(given_low, A_half)
            gradient_x = gradient_x.view(ctx.shape).to(ctx.dtype)
        return gradient_x, None, None, gradient_A, gradient_B, None
