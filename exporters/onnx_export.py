"""A classifier as an ONNX file: free axes, weights under their own names, the same bytes always."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from torch import nn

from edge_pslora.errors import ModelError, UsageError
from edge_pslora.exporters.export_options import OPSETS
from edge_pslora.exporters.onnx_graph import StoredAs, check_axes, name_initializers, tidy
from edge_pslora.exporters.onnx_quiet import quiet_exporter
from edge_pslora.exporters.onnx_write import write_model

LAYOUT_KEY = "pslora.layout"
OUTPUT = "logits"
PREFIX = "classifier."


@dataclass(frozen=True)
class OnnxFiles:
    """model: the .onnx file; data: its external data or None; layout: weight name -> how stored."""

    model: Path
    data: Path | None
    layout: Mapping[str, StoredAs]

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.model,) if self.data is None else (self.model, self.data)


class _Positional(nn.Module):
    """The classifier with positional inputs: the exporter names those one by one."""

    def __init__(self, classifier: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.classifier = classifier
        self.names = names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(**dict(zip(self.names, inputs, strict=True)))
        return logits


def export_onnx(
    classifier: nn.Module,
    example: Mapping[str, torch.Tensor],
    dynamic_axes: Mapping[str, tuple[str, ...]],
    path: Path,
    *,
    metadata: Mapping[str, str],
    opset: int = 18,
    external_data: bool | None = None,
) -> OnnxFiles:
    """Write `path` (and `path`_data) durably; equal models give equal bytes.

    Args:
        classifier: in eval mode, called with keyword inputs, gives logits [N, C].
        example: inputs of a few samples; the graph's inputs are named and ordered like its keys.
        dynamic_axes: input name -> names of its free leading axes; the first is the batch.
        metadata: goes into the file's metadata_props, beside `pslora.layout` (JSON: initializer
            name -> {source, transform}).
        opset: of the default domain.
        external_data: weights in a second file; None: only when they are too large for one.

    Raises:
        ModelError: training mode, a model that cannot be exported or fixes an axis.
        UsageError: an opset or metadata key that is not possible.
    """
    check_arguments(classifier, metadata, opset)
    names = tuple(example)
    inputs = _grown(example, dynamic_axes)
    shapes = tuple(dict(enumerate(dynamic_axes.get(name, ()))) for name in names)
    program = trace_graph(_Positional(classifier, names).eval(), inputs, shapes, names, opset)
    state = {name: tuple(tensor.shape) for name, tensor in classifier.state_dict().items()}
    tidy(program, frozenset(PREFIX + name for name in state))
    check_axes(program.graph, dynamic_axes, next(iter(dynamic_axes.values()), ())[:1])
    layout = name_initializers(program.graph, PREFIX, state)
    program.metadata_props.update(sorted({**metadata, LAYOUT_KEY: layout_json(layout)}.items()))
    data = write_model(program, path, external_data)
    return OnnxFiles(path, data, layout)


def layout_json(layout: Mapping[str, StoredAs]) -> str:
    """The value of `pslora.layout`."""
    content = {name: asdict(stored) for name, stored in layout.items()}
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def trace_graph(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    shapes: tuple[dict[int, str], ...],
    names: tuple[str, ...],
    opset: int,
    outputs: tuple[str, ...] = (OUTPUT,),
) -> ir.Model:
    """The graph of a module that takes `inputs` by position, as named; shapes: free axes of each."""
    try:
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
    except torch.onnx.OnnxExporterError as problem:
        raise ModelError(
            "ONNX export",
            expected="a model that torch.export can trace with free axes",
            found=_reason(problem),
            remedy="avoid control flow on tensor values and fixed sizes in the model's forward",
        ) from problem
    if program is None:
        raise ModelError(
            "ONNX export",
            expected="an ONNX program",
            found="none",
            remedy="use a torch version of constraints.txt",
        )
    return program.model


def _reason(problem: BaseException) -> str:
    """The first line of the innermost cause: the exporter wraps it in pages of advice."""
    while problem.__cause__ is not None:
        problem = problem.__cause__
    lines = [line for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: {lines[0] if lines else ''}"


def _grown(
    example: Mapping[str, torch.Tensor], dynamic_axes: Mapping[str, tuple[str, ...]]
) -> tuple[torch.Tensor, ...]:
    """The example with at least two along every free axis: torch.export fixes sizes of one."""
    grown = []
    for name, tensor in example.items():
        for position, _ in enumerate(dynamic_axes.get(name, ())):
            if tensor.shape[position] == 1:
                tensor = torch.cat([tensor, tensor], dim=position)
        grown.append(tensor)
    return tuple(grown)


def check_arguments(classifier: nn.Module, metadata: Mapping[str, str], opset: int) -> None:
    if classifier.training:
        raise ModelError(
            "ONNX export",
            expected="a model in eval mode",
            found="training mode",
            remedy="call model.eval() first",
        )
    if opset not in OPSETS:
        raise UsageError(
            "opset",
            expected=f"{OPSETS[0]} to {OPSETS[-1]}",
            found=str(opset),
            remedy="leave it at 18 for the widest support",
        )
    if LAYOUT_KEY in metadata:
        raise UsageError(
            "metadata",
            expected=f"keys other than {LAYOUT_KEY}",
            found=LAYOUT_KEY,
            remedy="choose another key",
        )
