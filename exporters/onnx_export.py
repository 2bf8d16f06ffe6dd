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
from edge_pslora.exporters.onnx_failure import Failure
from edge_pslora.exporters.onnx_file import LAYOUT_KEY
from edge_pslora.exporters.onnx_graph import StoredAs, check_axes, name_initializers, tidy
from edge_pslora.exporters.onnx_trace import PREFIX, Request, by_export, grown
from edge_pslora.exporters.onnx_tracing import Traced, by_tracing
from edge_pslora.exporters.onnx_write import write_model

DEFAULT_OPSET = OPSETS[0]  # the widest support
EXPORTER_KEY = "pslora.exporter"  # ends in "tracing" where the other exporter was needed


@dataclass(frozen=True)
class OnnxFiles:
    """model: the .onnx file; data: its external data or None; layout: weight name -> how stored.

    notes: sentences for the user; there are some where the file was made by tracing: such a file has to
    be proven on more than a few samples.
    """

    model: Path
    data: Path | None
    layout: Mapping[str, StoredAs]
    notes: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.model,) if self.data is None else (self.model, self.data)


def export_onnx(
    classifier: nn.Module,
    example: Mapping[str, torch.Tensor],
    dynamic_axes: Mapping[str, tuple[str, ...]],
    path: Path,
    *,
    metadata: Mapping[str, str],
    opset: int = DEFAULT_OPSET,
    external_data: bool | None = None,
) -> OnnxFiles:
    """Write `path` (and `path`_data) durably; equal models give equal bytes.

    Args:
        classifier: in eval mode, called with keyword inputs, gives logits [N, C].
        example: inputs of a few samples; the graph's inputs are named and ordered like its keys.
        dynamic_axes: input name -> names of its free leading axes, "" for one between them that is
            not free; the first is the batch.
        metadata: goes into the file's metadata_props, beside `pslora.layout` (JSON: initializer
            name -> {source, transform}).
        opset: of the default domain.
        external_data: weights in a second file; None: only when they are too large for one.

    Raises:
        ModelError: training mode, a model that cannot be exported or fixes an axis.
        UsageError: an opset or metadata key that is not possible.
    """
    check_arguments(classifier, metadata, opset)
    request = Request(classifier, grown(example, dynamic_axes), dynamic_axes, opset)
    program, notes = _program(request)
    state = {name: tuple(tensor.shape) for name, tensor in classifier.state_dict().items()}
    tidy(program, frozenset(PREFIX + name for name in state))
    _require_opset(program, opset)
    check_axes(program.graph, dynamic_axes, next(iter(dynamic_axes.values()), ())[:1])
    layout = name_initializers(program.graph, PREFIX, state)
    metadata = {**metadata, LAYOUT_KEY: layout_json(layout)}
    if notes:
        # no later generation may take this graph over: what was fixed may be another then
        said = [metadata[EXPORTER_KEY]] if EXPORTER_KEY in metadata else []
        metadata[EXPORTER_KEY] = "; ".join([*said, "tracing"])
    program.metadata_props.update(sorted(metadata.items()))
    data = write_model(program, path, external_data)
    return OnnxFiles(path, data, layout, notes)


def layout_json(layout: Mapping[str, StoredAs]) -> str:
    """The value of `pslora.layout`."""
    content = {name: asdict(stored) for name, stored in layout.items()}
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def _program(request: Request) -> tuple[ir.Model, tuple[str, ...]]:
    """The graph, and what is to be said of how it was made: nothing, unless by the other exporter."""
    exported = by_export(request)
    if isinstance(exported, ir.Model):
        return exported, ()
    traced = by_tracing(request)
    if isinstance(traced, Traced):
        return traced.program, (_said(exported, traced),)
    raise ModelError(
        f"ONNX export, {exported.where or traced.where or 'the model'}",
        expected="a model that torch.export can take with free axes, or else tracing",
        found=exported.what + (f"; tracing: {traced.reason}" if traced != exported else ""),
        remedy="avoid control flow on tensor values and fixed sizes in the model's forward",
    )


def _said(first: Failure, traced: Traced) -> str:
    fixed = ""
    if traced.fixed:
        count = f" and {len(traced.fixed) - 1} more places" if len(traced.fixed) > 1 else ""
        fixed = f" What Python decided at {traced.fixed[0]}{count} is fixed in the file as it went then."
    return (
        f"torch.export could not take the model ({first.line}), so that the ONNX file was made by "
        f"tracing one run.{fixed}"
    )


def _require_opset(program: ir.Model, opset: int) -> None:
    found = program.graph.opset_imports.get("")
    if found != opset:
        raise ModelError(
            "ONNX export",
            expected=f"a graph of opset {opset}",
            found=f"opset {found}: an operator of this model has no other form",
            remedy="leave --opset away",
        )


def check_arguments(classifier: nn.Module, metadata: Mapping[str, str], opset: int) -> None:
    """Raises ModelError: training mode. UsageError: an opset or metadata key that is not possible."""
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
