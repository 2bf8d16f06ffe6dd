"""Pictures with their channels last, where a model takes them so: the processor's kernels want them there.

MobileNetV1 in float32 takes 0.75 of the time, with features that differ in their seventh digit. The same
layout holds for a whole session: what is kept of lower layers must be what they would compute again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from edge_pslora.models.failures import FOREIGN_ERRORS
from edge_pslora.models.types import Backbone, EncodedInputs
from edge_pslora.training.replacing import replaced

LEAST_CONVOLUTIONS = 4  # with fewer (the patches of a transformer) the layout is of no account
LARGEST_DIFFERENCE = 1e-4  # of the features' norm
_MARK = "pictures_last"


def suits(backbone: Backbone, inputs: EncodedInputs) -> bool:
    """Whether it is a network of convolutions and computes the same so, tried on two samples."""
    found = [m for m in backbone.model.modules() if isinstance(m, nn.Conv2d)]
    if len(found) < LEAST_CONVOLUTIONS:
        return False
    batch = inputs.batch(np.arange(min(2, len(inputs)), dtype=np.int64))
    if not any(_is_picture(value) for value in batch.values()):
        return False
    try:
        with torch.no_grad():
            expected = backbone(**batch)
            with channels_last(backbone):
                output = backbone(**batch)
    except FOREIGN_ERRORS:  # `view` on what lies in another order, say
        return False
    difference = (output - expected).norm()
    return bool(difference <= LARGEST_DIFFERENCE * expected.norm())


@contextmanager
def channels_last(backbone: Backbone, wanted: bool = True) -> Iterator[None]:
    """Within the block pictures come to the backbone with their channels last, if wanted."""
    if not wanted:
        yield
        return
    forward = backbone.forward

    def laid(**inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = forward(**pictures_last(inputs))
        return output

    setattr(laid, _MARK, True)
    with replaced(backbone, laid):
        yield


def is_laid(backbone: Backbone) -> bool:
    """Whether a block of `channels_last` is in force, innermost."""
    forward: Callable[..., Any] | None = backbone.__dict__.get("forward")
    return getattr(forward, _MARK, False)


def pictures_last(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same inputs, pictures among them with channels last in memory."""
    return {
        name: x.contiguous(memory_format=torch.channels_last) if _is_picture(x) else x
        for name, x in inputs.items()
    }


def is_channels_last(value: Any) -> bool:
    """Whether it is a batch of pictures in that layout and in no other."""
    return (
        isinstance(value, torch.Tensor)
        and value.dim() == 4
        and not value.is_contiguous()
        and value.is_contiguous(memory_format=torch.channels_last)
    )


def _is_picture(value: torch.Tensor) -> bool:
    return value.dim() == 4 and value.is_floating_point()
