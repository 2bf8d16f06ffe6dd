"""The gradient of a batch, by parts that fit the memory: weighted as the batch's own mean weighs them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from edge_pslora.models.types import EncodedInputs
from edge_pslora.training.batches import Indices

# (model inputs, sample indices) -> scalar task loss: a mean over the terms that the samples bring
ComputeLoss = Callable[[dict[str, torch.Tensor], npt.NDArray[np.int64]], torch.Tensor]


def add_gradients(
    compute_loss: ComputeLoss,
    inputs: EncodedInputs,
    batch: Indices,
    micro_batch: int | None,
    terms: Indices | None = None,
) -> torch.Tensor:
    """Adds the gradient of the batch's loss to the parameters; returns the loss, detached.

    The sum of the parts is the whole batch's gradient, but for rounding and for layers whose output
    depends on how far a sample is padded (a part is padded to its own longest sample).

    terms: int64 [N], how many terms of the mean each sample brings; None: one each.
    """
    if micro_batch is None or len(batch) <= micro_batch:
        loss = compute_loss(inputs.batch(batch), batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()
    total: torch.Tensor | None = None
    for part, share in parts(batch, micro_batch, terms):
        loss = compute_loss(inputs.batch(part), part) * share
        loss.backward()  # type: ignore[no-untyped-call]
        total = loss.detach() if total is None else total + loss.detach()
    return torch.zeros(()) if total is None else total


def parts(batch: Indices, size: int, terms: Indices | None) -> list[tuple[Indices, float]]:
    """Runs of at most `size` samples and their shares of the batch's terms; those without are left out."""
    counts = np.ones(len(batch)) if terms is None else terms[batch].astype(np.float64)
    whole = counts.sum()
    cut = [slice(start, start + size) for start in range(0, len(batch), size)]
    return [(batch[c], float(counts[c].sum() / whole)) for c in cut if counts[c].any()]
