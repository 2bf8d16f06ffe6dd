"""The low-rank path beside a convolution: one to r channels with the same kernel, and a pointwise one.

A BatchNormalization that follows stays where it is, so that a runtime still folds it into the convolution
with the constant kernel: the update joins behind it, its B scaled as the normalisation scales.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edge_pslora.exporters.lora_factors import Array

_EPSILON = 1e-5  # of BatchNormalization where the node names none


def following_norm(node: ir.Node) -> ir.Node | None:
    """The BatchNormalization that alone reads the convolution's output, if there is one."""
    uses = tuple(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None
    reader = uses[0].node
    plain = reader.op_type == "BatchNormalization" and not reader.domain
    training = reader.attributes.get("training_mode")
    return reader if plain and (training is None or training.as_int() == 0) else None


def convolution_path(
    node: ir.Node, norm: ir.Node | None, A: ir.Value, B: ir.Value, shape: Sequence[int]
) -> list[ir.Node]:
    """Nodes in order, the last of which gives the update; A [in k, r], B [r, out].

    shape: of the convolution's weight, [out, in, k ...].
    """
    graph = node.graph
    assert graph is not None
    stem, ones = node.inputs[1].name, [1] * (len(shape) - 2)
    path: list[ir.Node] = []

    def then(op_type: str, inputs: Sequence[ir.Value | None], **attributes: object) -> ir.Value:
        path.append(ir.node(op_type, inputs, attributes, num_outputs=1))
        return path[-1].outputs[0]

    if norm is not None:
        epsilon = norm.attributes.get("epsilon")
        least = np.array(_EPSILON if epsilon is None else epsilon.as_float(), np.float32)
        variance = then("Add", [norm.inputs[4], constant(graph, f"{stem}.lora_epsilon", least)])
        scale = then("Div", [norm.inputs[1], then("Sqrt", [variance])])
        B = then("Mul", [B, scale])
    first = np.array([-1, *shape[1:]], np.int64)
    second = np.array([shape[0], -1, *ones], np.int64)
    down = then(
        "Reshape", [then("Transpose", [A], perm=[1, 0]), constant(graph, f"{stem}.lora_a", first)]
    )
    up = then(
        "Reshape", [then("Transpose", [B], perm=[1, 0]), constant(graph, f"{stem}.lora_b", second)]
    )
    low = ir.node("Conv", [node.inputs[0], down], node.attributes, num_outputs=1)
    path.append(low)
    then("Conv", [low.outputs[0], up], kernel_shape=ones)
    return path


def constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """A new initializer, or the one that is there under this name already."""
    found = graph.initializers.get(name)
    if found is not None:
        return found
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.initializers.add(value)
    return value
