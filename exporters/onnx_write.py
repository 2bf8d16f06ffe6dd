"""An ONNX model's bytes, written durably, one weight in memory at a time.

A weight lies in the model file or, by choice or above 1.5 GB, in one file beside it. protobuf
itself would hold the model three times (tensors, message, string): the large weights are therefore
appended to the serialized graph, field by field (`onnx_file`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from edge_pslora.errors import ModelError, UsageError
from edge_pslora.exporters.onnx_file import EXTERNAL_ABOVE, LARGE, take_initializers
from edge_pslora.exporters.onnx_publish import publish_model
from edge_pslora.workspace.durable import Append


@dataclass(frozen=True)
class _Tensor:
    """A weight that is turned into bytes when it is written, and not before."""

    tensor: Any

    @property
    def nbytes(self) -> int:
        return int(self.tensor.nbytes)

    def append(self, write: Append) -> None:
        write(self.tensor.tobytes())


def write_model(model: ir.Model, path: Path, external_data: bool | None) -> Path | None:
    """Check the model, then write `path`, and `path`_data if asked for or needed.

    Args:
        model: consumed: its large initializers become references.
        external_data: None decides by size.

    Returns:
        The path of the external data, or None.
    """
    large = {
        value.name or "": value.const_value
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.nbytes >= LARGE
    }
    size = sum(tensor.nbytes for tensor in large.values())
    if external_data is None:
        external_data = size > EXTERNAL_ABOVE
    elif not external_data and size > EXTERNAL_ABOVE:
        raise UsageError(
            "external_data",
            expected=f"at most {EXTERNAL_ABOVE} bytes of weights in one ONNX file",
            found=f"{size} bytes",
            remedy="leave the choice to the exporter",
        )
    _refer(model.graph, large)
    proto = ir.serde.serialize_model(model)
    _check(proto, large)
    payloads = {name: _Tensor(tensor) for name, tensor in large.items()}
    return publish_model(path, proto, payloads, external=external_data)


def _refer(graph: ir.Graph, large: Mapping[str, Any]) -> None:
    """Replace the tensors in the graph by references, so that no bytes of them are serialized."""
    for name, tensor in large.items():
        graph.initializers[name].const_value = ir.ExternalTensor(
            "elsewhere", 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=name
        )


def _check(proto: onnx.ModelProto, large: Mapping[str, Any]) -> None:
    """onnx.checker with strict shape inference; large weights stand in as inputs of their shape."""
    light = onnx.ModelProto()
    light.CopyFrom(proto)
    take_initializers(light.graph, large)
    inputs = {value.name for value in light.graph.input}  # a default is an input already
    for name, tensor in large.items():
        if name in inputs:
            continue
        shape = [int(size) for size in tensor.shape]
        light.graph.input.append(onnx.helper.make_tensor_value_info(name, int(tensor.dtype), shape))
    try:
        onnx.checker.check_model(light.SerializeToString(), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as problem:
        raise ModelError(
            "ONNX export",
            expected="a graph that onnx.checker accepts",
            found=str(problem),
            remedy="use the torch and onnx versions of constraints.txt, or report this model",
        ) from problem
