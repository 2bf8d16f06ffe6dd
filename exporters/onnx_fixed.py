"""Where a model fixes a size that was to be free: asked of torch.export, which says so in its log alone."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from types import FrameType

import torch
from torch import nn

from edge_pslora.exporters.onnx_failure import Spot, find_spot
from edge_pslora.exporters.onnx_quiet import quiet_exporter
from edge_pslora.models.failures import FOREIGN_ERRORS

_LOGGER = "torch.fx.experimental.symbolic_shapes"
_FIXED = (
    "set_replacement"  # begins the line that torch.export logs when a free size becomes a number
)


class _Watch(logging.Handler):
    """Looks at the stack at the moment when the first size is fixed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(logging.INFO)
        self.model = model
        self.found: Spot | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.found is None and record.getMessage().startswith(_FIXED):
            self.found = find_spot(reversed(list(_stack())), self.model)


def _stack() -> Iterator[tuple[FrameType, int]]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame, frame.f_lineno
        frame = frame.f_back


def where_fixed(
    model: nn.Module,
    wrapper: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    shapes: tuple[dict[int, str], ...],
) -> Spot | None:
    """The place in `model` that makes a free size a number, found by one more trace; None: none does.

    Args:
        wrapper: takes the inputs by position; `model` is inside. shapes: the free axes of each.
    """
    free = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in shapes)
    watch, logger = _Watch(model), logging.getLogger(_LOGGER)
    level, passed_on = logger.level, logger.propagate
    logger.addHandler(watch)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    others = [handler for handler in logger.handlers if handler is not watch]
    for handler in others:
        logger.removeHandler(handler)
    try:
        with quiet_exporter(), torch.no_grad():
            torch.export.export(wrapper, inputs, dynamic_shapes=(free,))
    except FOREIGN_ERRORS:
        return watch.found
    finally:
        for handler in others:
            logger.addHandler(handler)
        logger.removeHandler(watch)
        logger.setLevel(level)
        logger.propagate = passed_on
    return watch.found
