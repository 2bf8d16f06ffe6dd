"""A candidate's model.onnx: the parent's with new weights where that gives the same bytes, else traced.

Tracing is most of what an export costs, in time and memory, and from the second session on it finds the
graph that the parent's file has already. Whichever way the file was made, it is proven against torch.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from edge_pslora.errors import GateRefusedError, ModelError, WorkspaceError
from edge_pslora.exporters.onnx_file import EXTERNAL_ABOVE
from edge_pslora.exporters.onnx_patch import Array, with_tensors, write_patched
from edge_pslora.exporters.onnx_read import ModelFile, open_model
from edge_pslora.exporters.parity import Parity
from edge_pslora.pipeline.onnx_metadata import EXPORTER
from edge_pslora.training.allocator import give_back
from edge_pslora.training.classifier import Classifier
from edge_pslora.workspace import durable, layout
from edge_pslora.workspace.generation import Generation

Axes = Mapping[str, tuple[str, ...]]
Prove = Callable[[Path, bool], Parity]  # the file, and whether it was made by tracing one run
PATCHED = "patched"
_FOREIGN = frozenset({torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2})


@dataclass(frozen=True)
class Exported:
    """how: "patched", or why the graph was made anew. notes: sentences for the user."""

    parity: Parity
    how: str
    notes: tuple[str, ...] = ()


def write_onnx(
    path: Path,
    classifier: Classifier,
    example: Mapping[str, torch.Tensor],
    axes: Axes,
    metadata: Mapping[str, str],
    parent: Generation | None,
    prove: Prove,
) -> Exported:
    """Writes `path` (and its data) and proves it.

    Args:
        example: inputs of a few samples. axes: the free axes of each, see LoadedModel.

    Raises:
        GateRefusedError: the file is not what torch computes.
        EdgePsloraError: the parent's file was changed, or the model cannot be exported.
    """
    how = "the first generation"
    if parent is not None:
        how = _patch(path, classifier, example, axes, metadata, parent)
    if how == PATCHED:
        try:
            return Exported(prove(path, False), how)
        except GateRefusedError:
            # the model's code may be another than the parent's: what counts is the traced file's proof
            how = "the parent's graph does not compute what this model does"
            for name in (layout.ONNX, layout.ONNX_DATA):
                if path.with_name(name).exists():
                    durable.remove_file(path.with_name(name))
    # its imports take as long as torch's own, and a graph that is patched needs none of them
    from edge_pslora.exporters.onnx_export import export_onnx

    files = export_onnx(classifier, example, axes, path, metadata=metadata)
    gc.collect()  # a traced graph refers to itself in circles
    give_back()
    return Exported(prove(path, bool(files.notes)), how, files.notes)


def _patch(
    path: Path,
    classifier: Classifier,
    example: Mapping[str, torch.Tensor],
    axes: Axes,
    metadata: Mapping[str, str],
    parent: Generation,
) -> str:
    """Writes the parent's file with this classifier's weights; PATCHED, or why that cannot be."""
    if not parent.has(layout.ONNX):
        return "the parent has no ONNX file"
    parent.verify([name for name in (layout.ONNX, layout.ONNX_DATA) if parent.has(name)])
    with open_model(parent.path / layout.ONNX, error=WorkspaceError) as file:
        reason = _differs(file, example, axes, metadata)
        if reason is not None:
            return reason
        try:
            tensors = _arrays(classifier, file.named)
            patched, payloads = with_tensors(file, tensors, metadata)
        except ModelError as problem:
            return f"the parent's file does not fit: {problem.where}, {problem.found}"
        external = sum(payload.nbytes for payload in payloads.values()) > EXTERNAL_ABOVE
        write_patched(path, patched, payloads, external=external)
    return PATCHED


def _differs(
    file: ModelFile, example: Mapping[str, torch.Tensor], axes: Axes, metadata: Mapping[str, str]
) -> str | None:
    """Why tracing would give another graph, as far as that can be told without tracing."""
    if file.metadata.get(EXPORTER) != metadata[EXPORTER]:
        return "the parent was exported by other versions, or with another kind of head"
    inputs = {value.name: value.type.tensor_type.shape.dim for value in file.model.graph.input}
    if list(inputs) != list(example):
        return "other inputs than the parent's"
    for name, dims in inputs.items():
        free = axes.get(name, ())
        found = [dim.dim_param or dim.dim_value for dim in dims]
        if found != [*free, *example[name].shape[len(free) :]]:
            return f"another shape of {name} than the parent's"
    return None


def _arrays(classifier: Classifier, names: frozenset[str]) -> dict[str, Array]:
    """The classifier's tensors with these names, as views of its own memory.

    Raises:
        ModelError: one is missing, or has a type that numpy does not know.
    """
    state = classifier.state_dict()
    arrays = {}
    for name in sorted(names):
        tensor = state.get(name)
        if tensor is None or tensor.dtype in _FOREIGN:
            raise ModelError(
                name,
                expected="a weight of the model that numpy can hold",
                found="none" if tensor is None else str(tensor.dtype),
                remedy="export in full",
            )
        arrays[name] = tensor.detach().cpu().numpy()
    return arrays
