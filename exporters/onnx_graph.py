"""Tidying the exported graph without touching its weights: each keeps its name, shape and bytes.

torch's own `optimize=True` transposes Linear weights, folds BatchNorm into convolutions and renames
what it made. A runtime does the same when it loads the model (onnxruntime: equal latency when
measured), so here the weights stay as the state dict has them: a later patch finds them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxscript.optimizer

from edge_pslora.errors import ModelError

_SMALL = 1024  # bytes: constants up to this size are merged when equal


@dataclass(frozen=True)
class StoredAs:
    """How a weight of the state dict lies in the ONNX file.

    source: its name in the classifier's state dict. transform: what was done to it; this exporter
    writes `identity` only, readers must refuse what they do not know.
    """

    source: str
    transform: str = "identity"


def tidy(model: ir.Model, weights: frozenset[str]) -> None:
    """Fold constants that no weight enters, drop what is unused, lift constants, clear all notes.

    Args:
        model: changed in place.
        weights: names of initializers that no pass may fold.
    """

    def may_fold(node: ir.Node) -> bool | None:
        touched = any(value is not None and value.name in weights for value in node.inputs)
        return False if touched else None

    passes.InlinePass()(model)
    for _ in range(2):
        onnxscript.optimizer.fold_constants_ir(
            model, onnx_shape_inference=True, should_fold=may_fold
        )
        passes.IdentityEliminationPass()(model)
        passes.RemoveUnusedNodesPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.LiftSubgraphInitializersToMainGraphPass()(model)
    _merge_equal_constants(model.graph, weights)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedFunctionsPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    _clear_notes(model)


def _merge_equal_constants(graph: ir.Graph, weights: frozenset[str]) -> None:
    first: dict[tuple[object, ...], ir.Value] = {}
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or value.name in weights or tensor.nbytes > _SMALL:
            continue
        key = (tensor.dtype, tuple(tensor.shape), tensor.tobytes())
        kept = first.setdefault(key, value)
        if kept is not value and not value.is_graph_output():
            ir.convenience.replace_all_uses_with(value, kept)


def _clear_notes(model: ir.Model) -> None:
    # the exporter writes stack traces with source paths into nodes and values
    passes.ClearMetadataAndDocStringPass()(model)
    model.doc_string = None
    model.metadata_props.clear()
    model.graph.doc_string = None
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        _clear_value(value)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for value in node.outputs:
            _clear_value(value)


def _clear_value(value: ir.Value) -> None:
    value.doc_string = None
    value.metadata_props.clear()


def name_initializers(
    graph: ir.Graph, prefix: str, state: Mapping[str, tuple[int, ...]]
) -> dict[str, StoredAs]:
    """Weights get their state dict names, in its order; all others const_0, const_1, ... by use.

    Args:
        graph: changed in place.
        prefix: what stands before the state dict names in the graph, e.g. "classifier.".
        state: shape of every tensor of the state dict, by name, in order.

    Returns:
        initializer name -> how it is stored, for the weights that the graph uses.
    """
    found = {value.name: value for value in graph.initializers.values() if value.name}
    weights = {name: found.pop(prefix + name) for name in state if prefix + name in found}
    constants = sorted(found.values(), key=_order_of_use(graph))
    names = {**weights, **{f"const_{k}": value for k, value in enumerate(constants)}}
    for value in names.values():
        del graph.initializers[value.name]
    _free_names(graph, names.keys() | {prefix + name for name in state})
    for name, value in names.items():
        value.name = name
        if value.const_value is not None:
            value.const_value.name = name
        graph.initializers.add(value)
    for name, value in weights.items():
        shape = tuple(value.const_value.shape) if value.const_value is not None else None
        if shape != tuple(state[name]):
            raise ModelError(
                f"ONNX export, {name}",
                expected=f"a weight of shape {tuple(state[name])}",
                found=f"shape {shape}",
                remedy="this torch version rewrites weights: use one of constraints.txt",
            )
    return {name: StoredAs(name) for name in weights}


def _order_of_use(graph: ir.Graph) -> Callable[[ir.Value], tuple[int, str]]:
    order: dict[int, int] = {}
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for value in node.inputs:
            order.setdefault(id(value), len(order))
    for value in graph.outputs:
        order.setdefault(id(value), len(order))
    return lambda value: (order.get(id(value), len(order)), value.name or "")


def _free_names(graph: ir.Graph, taken: set[str]) -> None:
    """Rename intermediate values that carry a name an initializer is about to get."""
    for value in (*graph.inputs, *graph.outputs):
        if value.name in taken:
            raise ModelError(
                f"ONNX export, {value.name}",
                expected="inputs that are not named like a weight",
                found=f"an input or output and a weight named {value.name}",
                remedy="rename the model's input or its module",
            )
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for value in node.outputs:
            if value.name in taken:
                value.name = f"{value.name}_value"


def free_axes(axes: Mapping[str, Sequence[str]], name: str) -> dict[int, str]:
    """Position and name of a value's free axes; one that is called "" is not free."""
    return {place: axis for place, axis in enumerate(axes.get(name, ())) if axis}


def check_axes(
    graph: ir.Graph, dynamic_axes: Mapping[str, Sequence[str]], output_axes: Sequence[str]
) -> None:
    """Every axis asked for is free in the graph; a model that fixes one is a ModelError."""
    wanted = {
        value.name or "": tuple(dynamic_axes.get(value.name or "", ())) for value in graph.inputs
    }
    wanted |= {value.name or "": tuple(output_axes) for value in graph.outputs}
    for value in (*graph.inputs, *graph.outputs):
        for position, axis in free_axes(wanted, value.name or "").items():
            size = value.shape[position] if value.shape is not None else None
            if isinstance(size, int):
                raise ModelError(
                    f"ONNX export, {value.name}",
                    expected=f"any size along the axis {axis}",
                    found=f"the model works for {size} only",
                    remedy="use x.shape in place of fixed sizes in the model's forward",
                )
