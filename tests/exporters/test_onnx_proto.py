"""Our messages are those of the package `onnx`, field by field, and give its bytes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from google.protobuf.descriptor import FieldDescriptor as Field
from onnx import TensorProto, helper, numpy_helper

from edge_pslora.exporters import onnx_proto

THEIRS = {
    "Dimension": onnx.TensorShapeProto.Dimension,
    "TensorType": onnx.TypeProto.Tensor,
    **{
        name: getattr(onnx, name)
        for name in onnx_proto.MESSAGES
        if name not in ("Dimension", "TensorType")
    },
}
# written the same way: what we take for bytes is a message there, what we take for a number an enum
SAME = {Field.TYPE_MESSAGE: Field.TYPE_BYTES, Field.TYPE_ENUM: Field.TYPE_INT32}


@pytest.mark.parametrize("name", list(THEIRS))
def test_every_field_has_its_number_and_kind(name):
    ours = {field.number: field for field in onnx_proto.MESSAGES[name].DESCRIPTOR.fields}
    theirs = {field.number: field for field in THEIRS[name].DESCRIPTOR.fields}
    assert ours.keys() == theirs.keys()
    for number, field in theirs.items():
        mine = ours[number]
        assert mine.name == field.name
        assert mine.type in (field.type, SAME.get(field.type)), field.name
        assert (mine.is_repeated, mine.is_packed) == (field.is_repeated, field.is_packed)
        oneofs = [f.containing_oneof.name if f.containing_oneof else "" for f in (mine, field)]
        assert oneofs[0] == oneofs[1], field.name


def test_parsing_and_writing_again_gives_the_same_bytes():
    body = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["b"], name="n", doc_string="d")],
        "inner",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 2, None])],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
    )
    graph = helper.make_graph(
        [
            helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body),
            helper.make_node(
                "X", [], ["z"], domain="other", i=3, f=0.5, s="t", ints=[1, 2], floats=[1.5]
            ),
        ],
        "g",
        [helper.make_tensor_sequence_value_info("q", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
        [
            numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "w"),
            helper.make_tensor("v", TensorProto.INT64, [3], [1, -2, 1 << 40]),
            helper.make_tensor("h", TensorProto.FLOAT16, [2], [1.0, 2.0]),
            helper.make_tensor("s", TensorProto.STRING, [1], [b"x"]),
        ],
        value_info=[helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 3])],
    )
    function = helper.make_function("other", "X", [], ["z"], [], [helper.make_opsetid("", 18)])
    model = helper.make_model(
        graph, functions=[function], opset_imports=[helper.make_opsetid("", 18)], producer_name="p"
    )
    model.metadata_props.add(key="κ", value="v")
    graph.initializer[0].external_data.add(key="location", value="x")
    data = model.SerializeToString(deterministic=True)
    mine = onnx_proto.ModelProto()
    mine.ParseFromString(data)
    assert mine.SerializeToString(deterministic=True) == data
    assert not any(field.name == "" for field, _ in mine.ListFields())


def test_dtypes_are_the_packages():
    for number, dtype in onnx_proto.DTYPES.items():
        assert helper.tensor_dtype_to_np_dtype(number) == dtype
    assert onnx_proto.EXTERNAL == TensorProto.EXTERNAL
