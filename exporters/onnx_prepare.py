"""An exported graph made ready for onnxruntime's quantiser: plain weights under plain nodes. No torch.

The exporter keeps every weight as the state dict has it (`onnx_graph`), with a Transpose before a MatMul
and a BatchNormalization after a Conv. The quantiser looks at a node's own constant inputs only, so
here the transposed weights are stored, BatchNormalization and Pad go into the convolution, and a Gemm
becomes MatMul and Add.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules import common as rules

_PREFIX = "backbone.model."
# weight input of the nodes that can be quantised
WEIGHT_INPUT = {"Conv": 1, "MatMul": 1, "Gather": 0}
# one after the other: each looks for nodes that the one before it has left without other users
_RULES = (
    rules.remove_optional_bias_from_conv_rule,  # the exporter's zeros, shared by convolutions
    rules.fuse_batchnorm_into_conv_rule,
    rules.fuse_batchnorm_into_gemm_rule,
    rules.normalize_pad_format_conv_rule,
    rules.fuse_pad_into_conv_rule,
)


@dataclass(frozen=True)
class Layer:
    """A node with a constant float32 weight. name: of the node. bytes: of the weight.

    is_head: it makes the graph's output, with nothing but an Add behind it.
    """

    name: str
    op_type: str
    bytes: int
    is_head: bool


def prepare(model: ir.Model) -> tuple[Layer, ...]:
    """Changes `model` in place; what it computes stays the same up to rounding.

    Returns:
        The layers of the main graph that can be quantised, in its order. Each of its nodes has a
        name of its own afterwards; a layer's says which module it belongs to.
    """
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for rule in _RULES:
        rewrite(model, pattern_rewrite_rules=[rule])
    graph = model.graph
    for node in list(graph):
        if node.op_type == "Transpose" and node.domain == "":
            _store_transposed(graph, node)
    for node in list(graph):
        if node.op_type == "Gemm" and node.domain == "":
            _split_gemm(graph, node)
    passes.RemoveUnusedNodesPass()(model)
    return tuple(_named(graph))


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The float32 tensor of an initializer that no caller can replace; else None."""
    if value is None or not value.is_initializer() or value.is_graph_input():
        return None
    tensor = value.const_value
    return tensor if tensor is not None and tensor.dtype == ir.DataType.FLOAT else None


def _store_transposed(graph: ir.Graph, node: ir.Node) -> None:
    source = node.inputs[0]
    tensor = constant(source)
    if tensor is None or source is None or node.outputs[0].is_graph_output():
        return
    order = node.attributes.get("perm")
    axes = list(order.as_ints()) if order is not None else None
    stored = _new_weight(graph, f"{source.name}.T", tensor.numpy().transpose(axes))
    ir.convenience.replace_all_uses_with(node.outputs[0], stored)


def _split_gemm(graph: ir.Graph, node: ir.Node) -> None:
    """A W + b in two nodes; others (a transposed A, factors) stay: the quantiser would not take them."""
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    plain = given.get("alpha", 1.0) == 1.0 and given.get("beta", 1.0) == 1.0
    weight = node.inputs[1]
    tensor = constant(weight)
    if given.get("transA", 0) or not plain or tensor is None or weight is None:
        return
    if given.get("transB", 0):
        weight = _new_weight(graph, f"{weight.name}.T", tensor.numpy().T)
    output = node.outputs[0]
    product = ir.node("MatMul", [node.inputs[0], weight], name=node.name)
    made = [product]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        product.outputs[0].name = f"{output.name}.product"
        product.outputs[0].type, product.outputs[0].shape = output.type, output.shape
        made.append(ir.node("Add", [product.outputs[0], bias], name=f"{node.name}.add"))
    name = output.name
    ir.convenience.replace_nodes_and_values(graph, node, [node], made, [output], made[-1].outputs)
    made[-1].outputs[0].name = name


def _new_weight(graph: ir.Graph, name: str, array: npt.NDArray[np.float32]) -> ir.Value:
    while name in graph.initializers:  # the same weight, used in two orders of its axes
        name += "_"
    array = np.ascontiguousarray(array)
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.FLOAT),
        const_value=ir.tensor(array, name=name),
    )
    graph.register_initializer(value)
    return value


def _named(graph: ir.Graph) -> Iterator[Layer]:
    taken: set[str] = set()
    for number, node in enumerate(graph):
        index = WEIGHT_INPUT.get(node.op_type) if node.domain == "" else None
        weight = node.inputs[index] if index is not None and index < len(node.inputs) else None
        tensor = constant(weight)
        layer = tensor is not None and weight is not None and len(tensor.shape) >= 2
        base = _module(weight.name or "") if layer and weight is not None else f"node_{number}"
        name = base
        while name in taken:
            name = f"{base}_{len(taken)}"
        taken.add(name)
        node.name = name
        if layer and tensor is not None:
            yield Layer(name, node.op_type, tensor.nbytes, _makes_output(node))


def _module(weight: str) -> str:
    """backbone.model.encoder.query.weight.T -> encoder.query."""
    name = weight.rstrip("_").removesuffix(".T").removesuffix(".weight")
    return name.removeprefix(_PREFIX) or weight


def _makes_output(node: ir.Node) -> bool:
    output = node.outputs[0]
    users = [user for user, _ in output.uses()]
    if len(users) == 1 and users[0].op_type == "Add" and not output.is_graph_output():
        output = users[0].outputs[0]
    return bool(output.is_graph_output())
