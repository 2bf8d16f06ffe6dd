"""Whether an ONNX file may be given to onnxruntime: looked at without it, without torch, without onnx.

onnxruntime reads external data through a hard link or a link out of the folder, reserves what a constant
shape asks for (65 bytes can ask for 1.2 GB), and runs a Loop for ever. What is found here is refused
before; what a graph computes as it runs (a shape made of its inputs) is not seen: `onnx_trial` runs a
file from outside once in a process with limits.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edge_pslora.errors import InputError, ModelError
from edge_pslora.exporters.onnx_wire import BYTES, Field, Wire
from edge_pslora.workspace.reading import open_regular

MAX_NODES = 200_000
MAX_TENSORS = 100_000
MAX_ELEMENTS = 1 << 27  # of a tensor that a constant of the file gives the size of
_MAX_WINDOW = 1 << 16  # of kernels, strides, paddings
_MAX_SHAPE = 64  # entries of a constant shape that are looked at
_LOCATION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,254}")
_DIGITS = re.compile(r"[0-9]{1,15}")
# bytes of an element by ONNX's number of its type; 4-bit types take half a byte and are not written by us
_SIZES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
_INT64, _INT32 = 7, 6
_MS = "com.microsoft"
# of the default domain: all that compute tensors from tensors. Not: If, Loop, Scan and sequences, for they
# hold graphs or run for ever; strings; random numbers; decoders.
OPERATORS = frozenset(
    {
        *("Abs", "Acos", "Acosh", "Add", "AffineGrid", "And", "ArgMax", "ArgMin", "Asin", "Asinh"),
        *("Atan", "Atanh", "Attention", "AveragePool", "BatchNormalization", "BitShift"),
        *("BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "BlackmanWindow", "Cast"),
        *("CastLike", "Ceil", "Celu", "CenterCropPad", "Clip", "Col2Im", "Compress", "Concat"),
        *("Constant", "ConstantOfShape", "Conv", "ConvInteger", "ConvTranspose", "Cos", "Cosh"),
        *(
            "CumProd",
            "CumSum",
            "DFT",
            "DeformConv",
            "DepthToSpace",
            "DequantizeLinear",
            "Det",
            "Div",
        ),
        *("Dropout", "DynamicQuantizeLinear", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand"),
        *("EyeLike", "Flatten", "Floor", "GRU", "Gather", "GatherElements", "GatherND", "Gelu"),
        *(
            "Gemm",
            "GlobalAveragePool",
            "GlobalLpPool",
            "GlobalMaxPool",
            "Greater",
            "GreaterOrEqual",
        ),
        *("GridSample", "GroupNormalization", "HammingWindow", "HannWindow", "HardSigmoid"),
        *("HardSwish", "Hardmax", "Identity", "InstanceNormalization", "IsInf", "IsNaN", "LRN"),
        *("LSTM", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax"),
        *("LpNormalization", "LpPool", "MatMul", "MatMulInteger", "Max", "MaxPool", "Mean"),
        *("MeanVarianceNormalization", "MelWeightMatrix", "Min", "Mish", "Mod", "Mul", "Neg"),
        *("NonZero", "Not", "OneHot", "Or", "PRelu", "Pad", "Pow", "QLinearConv", "QLinearMatMul"),
        *(
            "QuantizeLinear",
            "RMSNormalization",
            "RNN",
            "Range",
            "Reciprocal",
            "ReduceL1",
            "ReduceL2",
        ),
        *("ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
        *("ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize", "ReverseSequence"),
        *("RotaryEmbedding", "Round", "STFT", "Scatter", "ScatterElements", "ScatterND", "Selu"),
        *("Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice", "Softmax"),
        *(
            "Softplus",
            "Softsign",
            "SpaceToDepth",
            "Split",
            "Sqrt",
            "Squeeze",
            "Sub",
            "Sum",
            "Swish",
        ),
        *("Tan", "Tanh", "TensorScatter", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu"),
        *("Unique", "Unsqueeze", "Upsample", "Where", "Xor"),
    }
)
DOMAINS: dict[str, frozenset[str]] = {
    "": OPERATORS,
    "ai.onnx": OPERATORS,
    _MS: frozenset({"QuantizeLinear", "DequantizeLinear", "MatMulNBits", "DynamicQuantizeMatMul"}),
}
# the input that says how large the output is
_SHAPE_INPUT = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "Resize": 3, "OneHot": 1, "Range": 1}
_WINDOWED = {"kernel_shape", "pads", "strides", "dilations", "output_padding", "output_shape"}


@dataclass(frozen=True)
class _Node:
    kind: str
    inputs: tuple[str, ...]


@dataclass
class _Graph:
    """constants: small whole numbers by name. external: (offset, end) that are used of each file."""

    nodes: list[_Node] = field(default_factory=list)
    constants: dict[str, list[int]] = field(default_factory=dict)
    external: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    tensors: int = 0


def check_onnx(path: Path, *, error: type[InputError] = ModelError, operators: bool = True) -> None:
    """Raises unless `path` is an ONNX file that stays in its folder and asks for no more than it brings.

    Args:
        path: a regular file, no link; its external data beside it.
        error: the class to raise: whose file it is.
        operators: also hold its operators against OPERATORS; leave it out only for a file that was made
            here, from a module of the user's own.

    Raises:
        error: no ONNX file or a damaged one; external data that is not a file of its own beside it; weights
            that are shorter or longer than their shapes; graphs within graphs, functions, unknown
            operators; a constant that asks for more than 128 million numbers.
    """
    if path.is_symlink():
        raise error(str(path), expected="a file", found="a link", remedy="give the file itself")
    with open_regular(path, error=error) as (descriptor, size):
        wire = Wire(descriptor, path, error)
        graph = _read_model(wire, size, operators)
    _check_external(graph, path, error)
    if operators:
        for node in graph.nodes:
            _check_size(node, graph.constants, wire)


def _read_model(wire: Wire, size: int, operators: bool) -> _Graph:
    graph, graphs = _Graph(), 0
    for part in wire.fields(0, size):
        if part.number == 7 and part.wire == BYTES:
            graphs += 1
            _read_graph(wire, part, graph, operators)
        elif part.number in (20, 25) and operators:
            raise wire.bad("one plain graph", "functions or training steps of its own")
    if graphs != 1:
        raise wire.bad("an ONNX file", f"{graphs} graphs")
    return graph


def _read_graph(wire: Wire, whole: Field, graph: _Graph, operators: bool) -> None:
    for part in wire.fields(whole.body, whole.end):
        if part.wire != BYTES:
            raise wire.bad("a graph", f"no message in field {part.number}")
        if part.number == 5:
            _read_tensor(wire, part, graph)
        elif part.number == 15:
            raise wire.bad("dense weights", "sparse ones")
        elif part.number == 1 and operators:
            graph.nodes.append(_read_node(wire, part, graph))
            if len(graph.nodes) > MAX_NODES:
                raise wire.bad(f"at most {MAX_NODES} operators", "more")


def _read_node(wire: Wire, whole: Field, graph: _Graph) -> _Node:
    kind, domain, inputs, outputs = "", "", [], []
    constants: list[list[int]] = []
    for part in wire.fields(whole.body, whole.end):
        if part.number == 1:
            inputs.append(wire.text(part))
        elif part.number == 2:
            outputs.append(wire.text(part))
        elif part.number == 4:
            kind = wire.text(part)
        elif part.number == 7:
            domain = wire.text(part)
        elif part.number == 5:
            constants += _read_attribute(wire, part, graph)
    if kind not in DOMAINS.get(domain, frozenset()):
        name = f"{domain}.{kind}" if domain else kind
        raise wire.bad("operators that compute tensors from tensors", ascii(name)[:80])
    if kind == "Constant" and len(outputs) == 1 and len(constants) == 1:
        graph.constants[outputs[0]] = constants[0]
    return _Node(kind, tuple(inputs))


def _read_attribute(wire: Wire, whole: Field, graph: _Graph) -> Iterator[list[int]]:
    """Small whole numbers in it, as a Constant has them."""
    name, numbers, tensor = "", [], None
    for part in wire.fields(whole.body, whole.end):
        if part.number == 1:
            name = wire.text(part)
        elif part.number in (3, 8):
            numbers += wire.numbers(part, 1 << 20)
        elif part.number in (6, 11, 22, 23):
            raise wire.bad(
                "operators without graphs of their own", f"a graph in {ascii(name)[:40]}"
            )
        elif part.number in (5, 10) and part.wire == BYTES:
            tensor = part
            found = _read_tensor(wire, part, graph)
            if found is not None:
                yield found
    if name in _WINDOWED and any(abs(number) > _MAX_WINDOW for number in numbers):
        raise wire.bad(f"{name} of at most {_MAX_WINDOW}", str(max(numbers, key=abs)))
    if tensor is None and name in ("value_int", "value_ints"):
        yield numbers[:_MAX_SHAPE]


def _read_tensor(wire: Wire, whole: Field, graph: _Graph) -> list[int] | None:
    """Checks a tensor against its shape; its values where they are few whole numbers."""
    graph.tensors += 1
    if graph.tensors > MAX_TENSORS:
        raise wire.bad(f"at most {MAX_TENSORS} tensors", "more")
    dims: list[int] = []
    kind, name, raw, outside = 0, "", None, False
    listed: list[Field] = []
    entries: dict[str, str] = {}
    for part in wire.fields(whole.body, whole.end):
        if part.number == 1:
            dims += wire.numbers(part, 16)
        elif part.number == 2:
            kind = part.value
        elif part.number == 8:
            name = wire.text(part)
        elif part.number == 9:
            raw = part
        elif part.number == 13:
            key, value = _entry(wire, part)
            entries[key] = value
        elif part.number == 14:
            outside = part.value == 1
        elif part.number in (4, 5, 7, 10, 11):
            listed.append(part)
        elif part.number in (3, 6):
            raise wire.bad("weights in one piece", f"text or segments in {ascii(name)[:40]}")
    if len(dims) > 16 or any(not 0 <= size < 1 << 40 for size in dims) or kind not in _SIZES:
        raise wire.bad("weights of a known type", f"{ascii(name)[:40]}: type {kind}, {dims[:16]}")
    size = math.prod(dims) * _SIZES[kind]
    if outside or entries:
        _note_external(wire, name, entries, size, graph)
        return None
    if raw is not None:
        if raw.end - raw.body != size or listed:
            found = f"{raw.end - raw.body} bytes"
            raise wire.bad(f"{size} bytes of {ascii(name)[:40]} for {dims}", found)
        values = wire.int64s(raw, _MAX_SHAPE) if kind == _INT64 and size <= 8 * _MAX_SHAPE else None
    else:
        values = _listed(wire, name, dims, kind, listed)
    if values is not None:
        graph.constants[name] = values
    return values


def _listed(
    wire: Wire, name: str, dims: list[int], kind: int, listed: list[Field]
) -> list[int] | None:
    """Values that stand one by one; there must be as many as the shape says."""
    wanted = math.prod(dims)
    numbers: list[int] = []
    count = 0
    for part in listed:
        if part.number in (5, 7, 11):
            found = wire.numbers(part, 1 << 20)
            count += len(found)
            numbers += found[:_MAX_SHAPE]
        else:
            count += (part.end - part.body) // (8 if part.number == 10 else 4)
    if count != wanted:
        raise wire.bad(f"{wanted} numbers of {ascii(name)[:40]} for {dims}", str(count))
    return numbers if kind in (_INT64, _INT32) and wanted <= _MAX_SHAPE else None


def _entry(wire: Wire, whole: Field) -> tuple[str, str]:
    found = {part.number: wire.text(part) for part in wire.fields(whole.body, whole.end)}
    return found.get(1, ""), found.get(2, "")


def _note_external(
    wire: Wire, name: str, entries: dict[str, str], size: int, graph: _Graph
) -> None:
    location = entries.get("location", "")
    offset, length = entries.get("offset", "0"), entries.get("length", str(size))
    plain = _LOCATION.fullmatch(location) and _DIGITS.fullmatch(offset)
    if not plain or length != str(size):
        found = ascii({key: entries[key] for key in sorted(entries)})[:120]
        raise wire.bad(f"{size} bytes of {ascii(name)[:40]} in a file beside it", found)
    span = (int(offset), int(offset) + size)
    graph.external.setdefault(location, []).append(span)


def _named_elsewhere(folder: Path, status: os.stat_result) -> bool:
    """Whether a file has a name outside of its folder.

    In it, it has two for a moment: while a model in two files is replaced (onnx_publish.settle).
    """
    if status.st_nlink == 1:
        return False
    here = [entry.inode() for entry in os.scandir(folder)]
    return here.count(status.st_ino) != status.st_nlink


def _check_external(graph: _Graph, path: Path, error: type[InputError]) -> None:
    """Each second file is a file of its own, beside the model, as long as what is taken of it."""
    for name, spans in graph.external.items():
        second = path.with_name(name)
        with open_regular(second, error=error) as (descriptor, size):
            status = os.fstat(descriptor)
            there = second.lstat()
            linked = stat.S_ISLNK(there.st_mode) or _named_elsewhere(path.parent, status)
            if linked or second.name == path.name:
                raise error(
                    str(second),
                    expected="a file of its own beside the model",
                    found="a link, or another name of a file elsewhere",
                    remedy="copy the model and its data into one folder",
                )
        taken = sum(end - start for start, end in spans)
        if max(end for _, end in spans) > size or taken > size:
            raise error(
                str(second),
                expected=f"at least {max(taken, max(end for _, end in spans))} bytes of weights",
                found=f"{size} bytes",
                remedy="the file is cut short; copy it again",
            )


def _check_size(node: _Node, constants: dict[str, list[int]], wire: Wire) -> None:
    """No constant of the file makes an output of more than MAX_ELEMENTS by itself."""
    if node.kind == "Pad" and len(node.inputs) > 1:
        pads = constants.get(node.inputs[1], [])
        if any(abs(value) > _MAX_WINDOW for value in pads):
            raise wire.bad(f"a padding of at most {_MAX_WINDOW}", f"the constant {pads}")
    at = _SHAPE_INPUT.get(node.kind)
    if at is None or len(node.inputs) <= at:
        return
    values = constants.get(node.inputs[at])
    if values is None:
        return
    count = math.prod(max(abs(value), 1) for value in values)
    if count > MAX_ELEMENTS:
        raise wire.bad(f"at most {MAX_ELEMENTS} numbers from {node.kind}", f"the constant {values}")
