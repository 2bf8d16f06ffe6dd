"""An ONNX model's bytes, written durably, one weight in memory at a time.

A weight lies in the model file or, by choice or above 1.5 GB, in one file beside it. protobuf
itself would hold the model three times (tensors, message, string): the large weights are therefore
appended to the serialized graph, field by field
(https://protobuf.dev/programming-guides/encoding/).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from edge_pslora.errors import ModelError, UsageError
from edge_pslora.workspace.durable import new_file, write_bytes

# A protobuf message ends at 2 GB; the graph itself and its strings need room too.
EXTERNAL_ABOVE = 1_500_000_000
_ALIGNMENT = 4096  # bytes: a runtime maps whole pages
_LARGE = 1024  # bytes: shapes and scalars always stay in the model

# field numbers of onnx.proto
_MODEL_GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
_GRAPH_INITIALIZER = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
_TENSOR_RAW_DATA = onnx.TensorProto.RAW_DATA_FIELD_NUMBER


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
        if value.const_value is not None and value.const_value.nbytes >= _LARGE
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
    data_path = path.with_name(path.name + "_data")
    offsets = _refer(model.graph, large, data_path)
    proto = ir.serde.serialize_model(model)
    _check(proto, large)
    if not external_data or not large:
        _write_inline(path, proto, large)
        return None
    _write_data(data_path, large, offsets)
    write_bytes(path, proto.SerializeToString(deterministic=True))
    return data_path


def _refer(graph: ir.Graph, large: Mapping[str, Any], data_path: Path) -> dict[str, int]:
    """Replace the tensors in the graph by references into `data_path`; their offsets there."""
    offsets: dict[str, int] = {}
    end = 0
    for name, tensor in large.items():
        offsets[name] = end + -end % _ALIGNMENT
        end = offsets[name] + tensor.nbytes
        graph.initializers[name].const_value = ir.ExternalTensor(
            data_path.name,
            offsets[name],
            tensor.nbytes,
            tensor.dtype,
            shape=tensor.shape,
            name=name,
            base_dir=data_path.parent,
        )
    return offsets


def _check(proto: onnx.ModelProto, large: Mapping[str, Any]) -> None:
    """onnx.checker with strict shape inference; large weights stand in as inputs of their shape."""
    light = onnx.ModelProto()
    light.CopyFrom(proto)
    _take_initializers(light.graph, large)
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


def _take_initializers(graph: onnx.GraphProto, names: Mapping[str, Any]) -> list[onnx.TensorProto]:
    """Remove and return the initializers with these names, in order."""
    taken = [tensor for tensor in graph.initializer if tensor.name in names]
    kept = [tensor for tensor in graph.initializer if tensor.name not in names]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return taken


def _write_inline(path: Path, proto: onnx.ModelProto, large: Mapping[str, Any]) -> None:
    heads = {}
    for stub in _take_initializers(proto.graph, large):
        stub.ClearField("external_data")
        stub.ClearField("data_location")
        head = stub.SerializeToString(deterministic=True)
        size = large[stub.name].nbytes
        head += _field_head(_TENSOR_RAW_DATA, size)
        heads[stub.name] = _field_head(_GRAPH_INITIALIZER, len(head) + size) + head
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    graph_size = len(graph) + sum(len(h) + large[name].nbytes for name, h in heads.items())
    with new_file(path) as write:
        write(proto.SerializeToString(deterministic=True))
        write(_field_head(_MODEL_GRAPH, graph_size))
        write(graph)
        for name, head in heads.items():
            write(head)
            write(large[name].tobytes())


def _write_data(path: Path, large: Mapping[str, Any], offsets: Mapping[str, int]) -> None:
    position = 0
    with new_file(path) as write:
        for name, tensor in large.items():
            write(bytes(offsets[name] - position))
            write(tensor.tobytes())
            position = offsets[name] + tensor.nbytes


def _field_head(number: int, size: int) -> bytes:
    """Tag and length of a length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(size)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
