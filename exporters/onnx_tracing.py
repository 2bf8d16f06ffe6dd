"""The other exporter, for what torch.export cannot take: what one run of the model did (TorchScript).

Tracing follows Python as it went for the example: a decision on values or sizes is fixed in the file. So
the file has to be proven on other samples, and whoever gets it has to hear of it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import onnx
import onnx_ir as ir
import onnxruntime
import torch
from onnx import numpy_helper

from edge_pslora.exporters.onnx_failure import Failure, failure, fixed_size, one_more, spoken
from edge_pslora.exporters.onnx_quiet import quiet_tracer
from edge_pslora.exporters.onnx_trace import OUTPUT, PREFIX, Request
from edge_pslora.exporters.run import LOAD_ERRORS, RUN_ERRORS
from edge_pslora.models.failures import FOREIGN_ERRORS

_FATAL_ONLY = 4  # onnxruntime's log level
MAX_OPSET = 20  # of torch's older exporter, which is no longer developed


@dataclass(frozen=True)
class Traced:
    """fixed: "net.py:18" for each place where Python took a value or a size out of a tensor."""

    program: ir.Model
    fixed: tuple[str, ...]


def by_tracing(request: Request) -> Traced | Failure:
    """The graph of one run, or why and where tracing gave up as well."""
    if request.opset > MAX_OPSET:
        return Failure("", f"tracing writes opset {MAX_OPSET} at most")
    # a size that the model fixes would be traced as a constant, and no error
    fixed = fixed_size(request.classifier, request.example, request.dynamic_axes)
    if fixed is not None:
        return fixed
    written = io.BytesIO()
    try:
        with quiet_tracer() as places, torch.no_grad():
            torch.onnx.export(
                request.module,
                tuple(request.example.values()),
                written,  # type: ignore[arg-type]  # torch takes it, and its annotation does not say so
                dynamo=False,
                verbose=False,
                opset_version=request.opset,
                input_names=list(request.names),
                output_names=[OUTPUT],
                dynamic_axes=request.shapes,
                do_constant_folding=False,  # it would fold BatchNorm into the weights before it
                keep_initializers_as_inputs=True,  # or weights of equal value become one
            )
        proto = onnx.load_model_from_string(written.getvalue())
    except FOREIGN_ERRORS as problem:
        return failure(problem, request.classifier)
    fault = _fault_at_another_size(written.getvalue(), request)
    if fault:
        return Failure("", fault)
    _drop_guesses(proto)
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    _name_batch(inferred.graph, request)
    changed = _changed_weight(inferred.graph, request)
    if changed:
        return Failure("", f"tracing changed the weight {changed}")
    return Traced(ir.from_proto(inferred), tuple(places))


def _fault_at_another_size(model: bytes, request: Request) -> str:
    """What the graph does wrong for one more along every free axis; "" if nothing.

    Loops over a size are traced as so many steps, which no shape in the graph shows.
    """
    grown = one_more(request.example, request.dynamic_axes)
    with torch.no_grad():
        expected = request.classifier(**grown).numpy()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    feed = {name: tensor.numpy() for name, tensor in grown.items()}
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        known = {value.name for value in session.get_inputs()}
        (found,) = session.run(None, {name: feed[name] for name in feed if name in known})
    except (*LOAD_ERRORS, *RUN_ERRORS) as problem:
        return f"the graph is for one size: {spoken(problem)}"
    if found.shape != expected.shape:
        return f"the graph is for one size: it gives {found.shape} in the place of {expected.shape}"
    return ""


def _drop_guesses(proto: onnx.ModelProto) -> None:
    """Weights are no inputs, and sizes are what ONNX infers: torch notes the example's as fixed."""
    graph = proto.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(inputs)
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")


def _name_batch(graph: onnx.GraphProto, request: Request) -> None:
    """The output's free axes are called like the input's, as far as they are of the same number."""
    axes = next(iter(request.dynamic_axes.values()), ())
    for value in graph.output:
        for axis, dimension in zip(axes, value.type.tensor_type.shape.dim, strict=False):
            if axis and not dimension.HasField("dim_value"):
                dimension.dim_param = axis


def _changed_weight(graph: onnx.GraphProto, request: Request) -> str:
    """The name of a weight whose bytes are not the model's; "" where all are."""
    state = request.classifier.state_dict()
    for tensor in graph.initializer:
        name = tensor.name.removeprefix(PREFIX)
        if name in state and tensor.name != name:
            found = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            if found.dtype != state[name].dtype or not torch.equal(found, state[name].cpu()):
                return str(name)
    return ""
