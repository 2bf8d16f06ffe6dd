"""Features and logits of many samples, in batches of similar length, in the samples' own order."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from edge_pslora.models.types import Backbone, EncodedInputs
from edge_pslora.training.batches import Indices, sorted_batches
from edge_pslora.training.placing import device_of

Around = Callable[[Indices], AbstractContextManager[None]]


@torch.no_grad()
def run_batches(
    module: nn.Module,
    inputs: EncodedInputs,
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
    around: Around = lambda samples: nullcontext(),
) -> torch.Tensor:
    """The module's output rows [N, ...] for all samples, on the CPU.

    around: what each batch is computed within.
    """
    device = device_of(module)
    rows: torch.Tensor | None = None
    for batch in sorted_batches(inputs.lengths(), batch_size):
        with around(batch):
            output = module(**{k: v.to(device) for k, v in inputs.batch(batch).items()}).cpu()
        if rows is None:
            rows = output.new_empty(len(inputs), *output.shape[1:])
        rows[torch.from_numpy(batch)] = output
        if on_batch is not None:
            on_batch(len(batch))
    return rows if rows is not None else torch.empty(0)


def extract_features(
    backbone: Backbone,
    inputs: EncodedInputs,
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
    around: Around = lambda samples: nullcontext(),
) -> torch.Tensor:
    """Features [N, d] of all samples."""
    return run_batches(backbone, inputs, batch_size, on_batch, around)
