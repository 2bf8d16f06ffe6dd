"""An exported graph whose update comes from outside: W0 + B A with A and B as inputs of a free rank.

Where a layer is a MatMul, Gemm, Gather or Conv of its weight, the update takes the low-rank path beside
it, (x A) B; elsewhere (weights that are computed with) the graph adds B A to the weight in every run.
Every input has an initializer as its default, as Olive's ExtractAdapters writes them: rank 0 for the
factors, so that a session without an adapter runs the base. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edge_pslora.errors import ModelError
from edge_pslora.exporters.adapter_convolution import constant, convolution_path, following_norm
from edge_pslora.exporters.lora_factors import Array

_SWAPPED = [1, 0]


@dataclass(frozen=True)
class FactorInputs:
    """The inputs of one adapted weight: A [in, r], B [r, out]; the update is A B, [in, out].

    transposed: the weight itself is [in, out] (embedding: [num, dim]); else [out, in, ...].
    """

    a_name: str
    b_name: str
    transposed: bool


def open_to_adapters(
    model: ir.Model,
    weights: Mapping[str, Array],
    factors: Mapping[str, FactorInputs],
    free_axes: Mapping[str, Sequence[str | None]],
) -> None:
    """Change `model` in place.

    Args:
        weights: initializer -> the value it gets, of the same shape, or of any size along a free axis.
        factors: initializer -> the inputs that update it.
        free_axes: initializer -> for each axis a name, or None for a fixed one: it becomes an input with
            its value as the default.

    Raises:
        ModelError: no such initializer, or of another shape.
    """
    graph = model.graph
    for name, array in weights.items():
        axes = free_axes.get(name, (None,) * array.ndim)
        _set(_initializer(graph, name), array, axes)
    for name, axes in free_axes.items():
        value = _initializer(graph, name)
        assert value.shape is not None
        sizes = [
            size if axis is None else axis for axis, size in zip(axes, value.shape, strict=True)
        ]
        value.shape = ir.Shape(sizes)
        graph.inputs.append(value)
    for index, (name, inputs) in enumerate(factors.items()):
        _update(graph, _initializer(graph, name), inputs, f"lora_r_{index}")


def free_last_axis(model: ir.Model, axis: str) -> None:
    """The last axis of the only output may have any size; what was noted of it inside is dropped."""
    for value in model.graph.outputs:
        assert value.shape is not None
        value.shape = ir.Shape([*value.shape[:-1], axis])


def _initializer(graph: ir.Graph, name: str) -> ir.Value:
    value = graph.initializers.get(name)
    if value is None or value.const_value is None:
        raise ModelError(
            f"ONNX export, {name}",
            expected="a weight of the published model.onnx",
            found=f"{len(graph.initializers)} others",
            remedy="adapt once more with this version, or export onnx",
        )
    return value


def _set(value: ir.Value, array: Array, axes: Sequence[str | None]) -> None:
    assert value.const_value is not None
    before = value.const_value.shape.numpy()
    same = len(before) == array.ndim and all(
        axis is not None or old == new
        for axis, old, new in zip(axes, before, array.shape, strict=True)
    )
    if not same:
        raise ModelError(
            f"ONNX export, {value.name}",
            expected=f"shape {list(before)}",
            found=f"{list(array.shape)}",
            remedy="the file does not belong to this base; export onnx",
        )
    dtype = value.const_value.dtype.numpy()
    value.const_value = ir.tensor(np.ascontiguousarray(array, dtype=dtype), name=value.name)
    value.shape = ir.Shape(array.shape)


def _update(graph: ir.Graph, weight: ir.Value, inputs: FactorInputs, rank: str) -> None:
    """Every use of the weight computes with the update too."""
    assert weight.const_value is not None
    shape = weight.const_value.shape.numpy()
    size = shape[0] if inputs.transposed else int(np.prod(shape[1:]))
    out = int(np.prod(shape[1:])) if inputs.transposed else shape[0]
    A = _input(graph, inputs.a_name, (size, rank), weight)
    B = _input(graph, inputs.b_name, (rank, out), weight)
    rest = []
    for node, position in tuple(weight.uses()):
        if _is_swap(node):
            uses = tuple(node.outputs[0].uses())
            # the transposed weight may be used by several nodes; all or none take the low path
            paths = [_low_path(n, p, inputs.transposed, swapped=True) for n, p in uses]
        else:
            uses = ((node, position),)
            paths = [_low_path(node, position, inputs.transposed, swapped=False)]
        if uses and all(paths):
            for consumer, _ in uses:
                _add_beside(consumer, A, B, shape)
        else:
            rest.append((node, position))
    if rest:
        changed = _changed_weight(graph, weight, A, B, inputs)
        for node, position in rest:
            node.replace_input_with(position, changed)


def _is_swap(node: ir.Node) -> bool:
    if node.op_type != "Transpose" or node.domain:
        return False
    perm = node.attributes.get("perm")
    return perm is not None and list(perm.as_ints()) == _SWAPPED


def _low_path(node: ir.Node, position: int, transposed: bool, *, swapped: bool) -> bool:
    """Whether the node computes x W for the matrix W [in, out], gathers its rows, or convolves with it."""
    as_matrix = transposed != swapped  # what the node sees is [in, out]
    if node.domain or position != (0 if node.op_type == "Gather" else 1):
        return False
    if node.op_type == "MatMul":
        return as_matrix
    if node.op_type == "Gather":
        return as_matrix and not swapped and _int(node, "axis", 0) == 0
    if node.op_type == "Gemm":
        plain = _int(node, "transA", 0) == 0 and _float(node, "alpha") == 1.0
        return plain and as_matrix != bool(_int(node, "transB", 0))
    if node.op_type == "Conv":
        return not transposed and _int(node, "group", 1) == 1
    return False


def _add_beside(node: ir.Node, A: ir.Value, B: ir.Value, shape: Sequence[int]) -> None:
    """y becomes y + (x A) B; shape: of the weight."""
    end = node
    if node.op_type == "Conv":
        norm = following_norm(node)
        end = node if norm is None else norm
        path = convolution_path(node, norm, A, B, shape)
    elif node.op_type == "Gather":
        path = [ir.node("Gather", [A, node.inputs[1]], {"axis": 0}, num_outputs=1)]
    else:
        path = [ir.node("MatMul", [node.inputs[0], A], num_outputs=1)]
    if node.op_type != "Conv":
        path.append(ir.node("MatMul", [path[0].outputs[0], B], num_outputs=1))
    result = end.outputs[0]
    name, uses = result.name or "", tuple(result.uses())
    path.append(ir.node("Add", [result, path[-1].outputs[0]], num_outputs=1))
    _name(path, name)
    graph = end.graph
    assert graph is not None
    graph.insert_after(end, path)
    added = path[-1].outputs[0]
    added.shape, added.type = result.shape, result.type
    for consumer, position in uses:
        consumer.replace_input_with(position, added)
    for index, output in enumerate(graph.outputs):
        if output is result:
            result.name, added.name = f"{name}_frozen", name
            graph.outputs[index] = added


def _changed_weight(
    graph: ir.Graph, weight: ir.Value, A: ir.Value, B: ir.Value, inputs: FactorInputs
) -> ir.Value:
    """W0 + B A, computed at the start of every run."""
    assert weight.const_value is not None
    shape = weight.const_value.shape.numpy()
    name = weight.name or ""
    nodes = []
    left, right = A, B
    if not inputs.transposed:
        nodes = [ir.node("Transpose", [v], {"perm": _SWAPPED}, num_outputs=1) for v in (B, A)]
        left, right = nodes[0].outputs[0], nodes[1].outputs[0]
    nodes.append(ir.node("MatMul", [left, right], num_outputs=1))
    if len(shape) > 2:
        sizes = constant(graph, f"{name}.lora_shape", np.array(shape, np.int64))
        nodes.append(ir.node("Reshape", [nodes[-1].outputs[0], sizes], num_outputs=1))
    nodes.append(ir.node("Add", [weight, nodes[-1].outputs[0]], num_outputs=1))
    _name(nodes, name)
    graph.insert_before(graph[0], nodes)
    return nodes[-1].outputs[0]


def _name(nodes: Sequence[ir.Node], stem: str) -> None:
    for index, node in enumerate(nodes):
        node.name = node.outputs[0].name = f"{stem}.lora_{index}"


def _input(
    graph: ir.Graph, name: str, axes: tuple[int | str, int | str], weight: ir.Value
) -> ir.Value:
    """A free input whose default has rank 0."""
    assert weight.const_value is not None
    dtype = weight.const_value.dtype
    empty = np.zeros([0 if isinstance(axis, str) else axis for axis in axes], dtype.numpy())
    value = ir.Value(
        name=name,
        shape=ir.Shape(axes),
        type=ir.TensorType(dtype),
        const_value=ir.tensor(empty, name=name),
    )
    graph.inputs.append(value)
    graph.initializers.add(value)
    return value


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _float(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return 1.0 if attribute is None else attribute.as_float()
