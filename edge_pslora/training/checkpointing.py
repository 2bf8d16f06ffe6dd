"""Activations computed again in the backward pass instead of kept: memory of one block instead of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from edge_pslora.training.replacing import replaced


def blocks(model: nn.Module) -> list[nn.Module]:
    """The layers that a model repeats: the list or sequence of modules with the most parameters.

    Empty where no such list holds at least half of the model's parameters: nothing would be saved.
    """
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
    # the outermost comes first, and of equals the first is taken: a block may hold lists itself
    largest = max((m for m in lists if len(m) > 1), key=_size, default=None)
    if largest is None or 2 * _size(largest) < _size_beside_embeddings(model):
        return []
    return list(largest)


@contextmanager
def checkpointed(
    model: nn.Module, within: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> Iterator[bool]:
    """Within the block every one of the model's blocks keeps its input alone; False: it has none.

    within: what a block is computed in besides the second time. Autocast torch restores by itself, but a
    mode for its functions is not in force in a backward pass.
    """
    found = blocks(model)
    with ExitStack() as stack:
        for block in found:
            stack.enter_context(replaced(block, _again(block.forward, within)))
        yield bool(found)


def _again(
    forward: Callable[..., Any], within: Callable[[], AbstractContextManager[Any]]
) -> Callable[..., Any]:
    # nothing is random in a model in eval mode
    return partial(
        checkpoint,
        forward,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), within()),
    )


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _size_beside_embeddings(model: nn.Module) -> int:
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in tables)
