"""The messages of an ONNX file, as far as we read and change them, without the package `onnx`.

A device brings its model.onnx to another generation, and the package is large and not needed to run
one. What is here has the numbers and kinds of onnx.proto (https://github.com/onnx/onnx, proto2), so that
parsing and writing again gives the bytes that the package gives; parts that we never look into are
bytes, and stay as they are. A test holds every field to the package's own.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# messages are made below, when this is imported: to a type checker they are anything
Model = Any
Graph = Any
Tensor = Any

_SCHEMA = {
    "StringStringEntryProto": "1 key string, 2 value string",
    "TensorProto": (
        "1 dims int64*, 2 data_type int32, 3 segment bytes, 4 float_data float+, 5 int32_data int32+, "
        "6 string_data bytes*, 7 int64_data int64+, 8 name string, 9 raw_data bytes, "
        "10 double_data double+, 11 uint64_data uint64+, 12 doc_string string, "
        "13 external_data StringStringEntryProto*, 14 data_location int32, "
        "16 metadata_props StringStringEntryProto*"
    ),
    "Dimension": "1 dim_value int64 |value, 2 dim_param string |value, 3 denotation string",
    "TensorShapeProto": "1 dim Dimension*",
    "TensorType": "1 elem_type int32, 2 shape TensorShapeProto",
    "TypeProto": (
        "1 tensor_type TensorType |value, 4 sequence_type bytes |value, 5 map_type bytes |value, "
        "6 denotation string, 7 opaque_type bytes |value, 8 sparse_tensor_type bytes |value, "
        "9 optional_type bytes |value"
    ),
    "ValueInfoProto": (
        "1 name string, 2 type TypeProto, 3 doc_string string, 4 metadata_props bytes*"
    ),
    "AttributeProto": (
        "1 name string, 2 f float, 3 i int64, 4 s bytes, 5 t bytes, 6 g bytes, 7 floats float*, "
        "8 ints int64*, 9 strings bytes*, 10 tensors bytes*, 11 graphs bytes*, 13 doc_string string, "
        "14 tp bytes, 15 type_protos bytes*, 20 type int32, 21 ref_attr_name string, "
        "22 sparse_tensor bytes, 23 sparse_tensors bytes*"
    ),
    "NodeProto": (
        "1 input string*, 2 output string*, 3 name string, 4 op_type string, "
        "5 attribute AttributeProto*, 6 doc_string string, 7 domain string, 8 overload string, "
        "9 metadata_props bytes*, 10 device_configurations bytes*"
    ),
    "GraphProto": (
        "1 node NodeProto*, 2 name string, 5 initializer TensorProto*, 10 doc_string string, "
        "11 input ValueInfoProto*, 12 output ValueInfoProto*, 13 value_info ValueInfoProto*, "
        "14 quantization_annotation bytes*, 15 sparse_initializer bytes*, 16 metadata_props bytes*"
    ),
    "ModelProto": (
        "1 ir_version int64, 2 producer_name string, 3 producer_version string, 4 domain string, "
        "5 model_version int64, 6 doc_string string, 7 graph GraphProto, 8 opset_import bytes*, "
        "14 metadata_props StringStringEntryProto*, 20 training_info bytes*, 25 functions bytes*, "
        "26 configuration bytes*"
    ),
}
_PACKAGE = "edge_pslora.onnx"
_KINDS = {
    "double": descriptor_pb2.FieldDescriptorProto.TYPE_DOUBLE,
    "float": descriptor_pb2.FieldDescriptorProto.TYPE_FLOAT,
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
    "uint64": descriptor_pb2.FieldDescriptorProto.TYPE_UINT64,
    "int32": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
}


def _add_field(message: Any, text: str) -> None:
    """`number name kind`, then * for repeated, + for repeated and packed, or | and its choice."""
    number, name, kind, *choice = text.split()
    field = message.field.add(name=name, number=int(number))
    repeated = kind[-1] in "*+"
    field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
    if kind.endswith("+"):
        field.options.packed = True
    kind = kind.rstrip("*+")
    if kind in _KINDS:
        field.type = _KINDS[kind]
    else:
        field.type, field.type_name = field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
    if choice:
        if not message.oneof_decl:
            message.oneof_decl.add(name=choice[0].removeprefix("|"))
        field.oneof_index = 0


def _messages() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="edge_pslora_onnx.proto", package=_PACKAGE, syntax="proto2"
    )
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        for text in fields.split(", "):
            _add_field(message, text)
    pool = descriptor_pool.DescriptorPool()  # of its own: the package may be there as well
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _SCHEMA
    }


MESSAGES = _messages()
ModelProto: Any = MESSAGES["ModelProto"]
GraphProto: Any = MESSAGES["GraphProto"]
TensorProto: Any = MESSAGES["TensorProto"]

MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_RAW_DATA = 7, 5, 9  # numbers of those fields
EXTERNAL = 1  # of data_location

# TensorProto.DataType
DTYPES: dict[int, np.dtype[Any]] = {
    number: np.dtype(kind)
    for number, kind in {
        1: np.float32,
        2: np.uint8,
        3: np.int8,
        4: np.uint16,
        5: np.int16,
        6: np.int32,
        7: np.int64,
        9: np.bool_,
        10: np.float16,
        11: np.float64,
        12: np.uint32,
        13: np.uint64,
        14: np.complex64,
        15: np.complex128,
        16: ml_dtypes.bfloat16,
        17: ml_dtypes.float8_e4m3fn,
        18: ml_dtypes.float8_e4m3fnuz,
        19: ml_dtypes.float8_e5m2,
        20: ml_dtypes.float8_e5m2fnuz,
    }.items()
}
