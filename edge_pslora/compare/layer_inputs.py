"""What the adapted layers are given: the second moments of their inputs, collected by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from edge_pslora.errors import UsageError
from edge_pslora.models.types import Backbone, EncodedInputs
from edge_pslora.training.batches import sorted_batches
from edge_pslora.training.targets import Target

Columns = Callable[[nn.Module, torch.Tensor], torch.Tensor]


def _plain(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


def _patches(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Rows [P, in * kernel]: what each place of the output is computed from."""
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    flat = isinstance(module, nn.Conv1d)
    if module.padding_mode != "zeros":
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
    padding = (0,) * len(module.kernel_size) if module.padding_mode != "zeros" else module.padding
    if isinstance(padding, str):
        raise _unseen(f"a convolution with padding {padding!r}")
    if flat:
        x = x[:, :, None]
    unfolded = F.unfold(
        x,
        (1, *module.kernel_size) if flat else module.kernel_size,
        (1, *module.dilation) if flat else module.dilation,
        (0, *padding) if flat else padding,
        (1, *module.stride) if flat else module.stride,
    )
    return unfolded.transpose(1, 2).reshape(-1, unfolded.shape[1])


_COLUMNS: dict[str, Columns] = {
    "linear": _plain,
    "transposed_linear": _plain,
    "conv1d": _patches,
    "conv2d": _patches,
}


def input_covariances(
    backbone: Backbone, targets: Sequence[Target], inputs: EncodedInputs, batch_size: int
) -> dict[str, torch.Tensor]:
    """H H^T / n [in, in] of every target, float32, over the n inputs of all samples.

    Raises:
        UsageError: a kind of layer whose inputs a hook does not see.
    """
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    with ExitStack() as stack:
        for target in targets:
            stack.enter_context(_watched(backbone.model, target, sums, counts))
        # outputs are not collected: those of a language model are as long as their batch's texts
        with torch.no_grad():
            for batch in sorted_batches(inputs.lengths(), batch_size):
                backbone(**inputs.batch(batch))
    return {name: total / counts[name] for name, total in sums.items()}


@contextmanager
def _watched(
    model: nn.Module, target: Target, sums: dict[str, torch.Tensor], counts: dict[str, int]
) -> Iterator[None]:
    columns = _COLUMNS.get(target.kind)
    if columns is None:
        raise _unseen(f"{target.name}, a layer of kind {target.kind}")

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows = columns(module, args[0] if args else next(iter(kwargs.values())))
        sums[target.name] = sums.get(target.name, 0.0) + rows.T @ rows
        counts[target.name] = counts.get(target.name, 0) + len(rows)

    handle = model.get_submodule(target.name).register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _unseen(found: str) -> UsageError:
    return UsageError(
        "the inputs of a layer",
        expected="Linear layers and convolutions with numbers for padding",
        found=found,
        remedy="leave this method out, or name other layers with --target",
    )
