"""A classifier as an ONNX graph, by torch.export: what the torch documentation calls its exporter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import nn

from edge_pslora.errors import ModelError
from edge_pslora.exporters.onnx_failure import Failure, failure, fixed_size
from edge_pslora.exporters.onnx_fixed import where_fixed
from edge_pslora.exporters.onnx_graph import free_axes
from edge_pslora.exporters.onnx_quiet import quiet_exporter
from edge_pslora.models.failures import FOREIGN_ERRORS

OUTPUT = "logits"
PREFIX = "classifier."  # what stands before the weights' names in the graph


class Positional(nn.Module):
    """The classifier with positional inputs: the exporters name those one by one."""

    def __init__(self, classifier: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.classifier = classifier
        self.names = names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(**dict(zip(self.names, inputs, strict=True)))
        return logits


@dataclass(frozen=True)
class Request:
    """What is to be exported, for either exporter.

    example: at least two along every free axis. dynamic_axes: input name -> names of its leading axes; ""
    is an axis that is not free.
    """

    classifier: nn.Module
    example: Mapping[str, torch.Tensor]
    dynamic_axes: Mapping[str, tuple[str, ...]]
    opset: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.example)

    @property
    def shapes(self) -> dict[str, dict[int, str]]:
        """input name -> position and name of its free axes."""
        return {name: free_axes(self.dynamic_axes, name) for name in self.names}

    @property
    def module(self) -> nn.Module:
        return Positional(self.classifier, self.names).eval()


def by_export(request: Request) -> ir.Model | Failure:
    """The graph as torch.export has it, or why and where it gave up."""
    shapes = tuple(request.shapes.values())
    inputs = tuple(request.example.values())
    try:
        return _exported(request.module, inputs, shapes, request.names, request.opset, (OUTPUT,))
    except FOREIGN_ERRORS as problem:
        found = failure(problem, request.classifier)
        if found.where:
            return found
        fixed = fixed_size(request.classifier, request.example, request.dynamic_axes)
        if fixed is not None:
            return fixed
        spot = where_fixed(request.classifier, request.module, inputs, shapes)
        return found if spot is None else Failure(spot.where, found.reason, spot.at)


def trace_graph(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    shapes: tuple[dict[int, str], ...],
    names: tuple[str, ...],
    opset: int,
    outputs: tuple[str, ...] = (OUTPUT,),
) -> ir.Model:
    """The graph of a module that takes `inputs` by position, as named; shapes: free axes of each.

    Raises:
        ModelError: torch.export cannot take the module; with its place.
    """
    try:
        return _exported(module, inputs, shapes, names, opset, outputs)
    except FOREIGN_ERRORS as problem:
        found = failure(problem, module)
        raise ModelError(
            f"ONNX export, {found.where.removeprefix(PREFIX) or 'the model'}",
            expected="a model that torch.export can take with free axes",
            found=found.what,
            remedy="avoid control flow on tensor values and fixed sizes in the model's forward",
        ) from problem


def _exported(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    shapes: tuple[dict[int, str], ...],
    names: tuple[str, ...],
    opset: int,
    outputs: tuple[str, ...],
) -> ir.Model:
    with quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=opset,
            input_names=list(names),
            output_names=list(outputs),
            dynamic_shapes=(shapes,),
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    return program.model


def grown(
    example: Mapping[str, torch.Tensor], dynamic_axes: Mapping[str, tuple[str, ...]]
) -> dict[str, torch.Tensor]:
    """The example with at least two along every free axis: torch.export fixes sizes of one."""
    larger = {}
    for name, tensor in example.items():
        for position in free_axes(dynamic_axes, name):
            if tensor.shape[position] == 1:
                tensor = torch.cat([tensor, tensor], dim=position)
        larger[name] = tensor
    return larger
