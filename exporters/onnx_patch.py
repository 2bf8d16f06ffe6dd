"""New weights in an ONNX file of ours, without the model: what did not change is copied by the kernel.

The result has the bytes that a full export of the new weights would have. No torch, no workspace.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from edge_pslora.errors import InputError, ModelError
from edge_pslora.exporters import onnx_file as layout
from edge_pslora.exporters.onnx_file import LARGE, LAYOUT_KEY, Payload, Stored, Values
from edge_pslora.exporters.onnx_proto import (
    DTYPES,
    Graph,
    Model,
    ModelProto,
    Tensor,
    TensorProto,
)
from edge_pslora.exporters.onnx_publish import Proof, publish_model, remove_interim
from edge_pslora.exporters.onnx_read import ModelFile, external_name, open_model
from edge_pslora.workspace import durable
from edge_pslora.workspace.reading import FileDigest

Array = npt.NDArray[Any]
# the only weights whose shape may change, in the order of the state dict, where they come last
HEAD = ("head.weight", "head.bias")
_SPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class Patched:
    """kept: bytes of large weights that were copied from the old file; written: of all others."""

    model: Path
    data: Path | None
    kept: int
    written: int

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.model,) if self.data is None else (self.model, self.data)


def patch_onnx(
    existing: Path,
    out: Path,
    tensors: Mapping[str, Array],
    metadata: Mapping[str, str],
    *,
    expected: tuple[FileDigest, ...] | None = None,
    external: bool | None = None,
    error: type[InputError] = ModelError,
) -> Patched:
    """Write `out`: the model `existing` with other weights; byte for byte what a full export gives.

    Args:
        existing: a model.onnx that this exporter wrote, its second file beside it if it has one.
        out: may be `existing`, which is then replaced in steps that a crash cannot mix (see
            `onnx_publish`; hold `workspace.lock.folder_lock` of its folder meanwhile); or a new path.
        tensors: new values by initializer name, the model's dtype and shape; those that are not given
            stay. head.weight [C, d] and head.bias [C] may have another C than before.
        metadata: all metadata_props of the result but `pslora.layout`, which stays.
        expected: length and sha256 of the result as one file; or, of two entries, of model.onnx and
            model.onnx_data. They are compared before anything is replaced, whichever layout is
            written. Without them kept weights are taken as they are in `existing`.
        external: whether weights lie in a second file; None: as in `existing`.
        error: the class to raise where `existing` is at fault.

    Raises:
        error: not a file of ours, damaged, or without these weights.
        error: the result would not be what was expected; nothing was changed.
        EdgePsloraError: the disk failed or is full; nothing was changed.
    """
    with open_model(existing, error=error) as file:
        model, payloads = with_tensors(file, tensors, metadata, error)
        beside = file.data is not None if external is None else external
        proof = None if expected is None else proven(out, model, payloads, expected, error)
        done = write_patched(out, model, payloads, external=beside, proof=proof)
    if out == existing:
        remove_interim(out, done.data)
    return done


def write_patched(
    out: Path,
    model: Model,
    payloads: Mapping[str, Payload],
    *,
    external: bool,
    proof: Proof | None = None,
) -> Patched:
    """As `publish_model`, if there is room; says how much was kept."""
    total = sum(payload.nbytes for payload in payloads.values())
    durable.require_free_space(out.parent, total + 3 * model.ByteSize() + _SPARE_BYTES)
    data = publish_model(out, model, payloads, external=external, proof=proof)
    kept = sum(p.nbytes for p in payloads.values() if isinstance(p, Stored))
    return Patched(out, data, kept, total - kept)


def proven(
    out: Path,
    model: Model,
    payloads: Mapping[str, Payload],
    expected: tuple[FileDigest, ...],
    error: type[InputError] = ModelError,
) -> Proof:
    """What `publish_model` calls: the written weights, in the layout of `expected`, have its digests."""
    name = external_name(Path("model.onnx")) if len(expected) > 1 else None
    planned = layout.plan(model, {n: p.nbytes for n, p in payloads.items()}, name)

    def prove(written: Mapping[str, Stored]) -> None:
        found = layout.digests(planned, written)
        if found != expected:
            raise error(
                str(out),
                expected=f"sha256 {' and '.join(d.sha256[:12] for d in expected)}",
                found=" and ".join(d.sha256[:12] for d in found),
                remedy="nothing was changed; export again in full",
            )

    return prove


def with_tensors(
    file: ModelFile,
    tensors: Mapping[str, Array],
    metadata: Mapping[str, str],
    error: type[InputError] = ModelError,
) -> tuple[Model, dict[str, Payload]]:
    """The model of `file` with other values, and where the bytes of its large weights are.

    A given value that the file has already stays the file's: then the kernel copies it.
    """
    model = ModelProto()
    model.CopyFrom(file.model)
    stubs = {stub.name: stub for stub in model.graph.initializer}
    payloads: dict[str, Payload] = dict(file.weights)
    _check_names(file, tensors, stubs, error)
    same = layout.unchanged(file.weights, {name: Values(array) for name, array in tensors.items()})
    for name, array in tensors.items():
        stub = stubs[name]
        if list(array.shape) != list(stub.dims):
            _resize(model.graph, stub, array.shape, file.path, error)
        if array.nbytes < LARGE:
            payloads.pop(name, None)
            for field in ("external_data", "data_location"):
                stub.ClearField(field)
            stub.raw_data = Values(array).raw().tobytes()
        else:
            payloads[name] = same.get(name) or Values(array)
            stub.ClearField("raw_data")
    if any(list(stub.dims) != list(file.initializers[name].dims) for name, stub in stubs.items()):
        _check_head(model.graph, file.path, error)
    _in_order(model.graph, payloads)
    _set_metadata(model, {**metadata, LAYOUT_KEY: file.metadata[LAYOUT_KEY]})
    large = [stub.name for stub in model.graph.initializer if stub.name in payloads]
    return model, {name: payloads[name] for name in large}


def _check_names(
    file: ModelFile,
    tensors: Mapping[str, Array],
    stubs: Mapping[str, Tensor],
    error: type[InputError],
) -> None:
    for name, array in tensors.items():
        stub = stubs.get(name)
        if stub is None or name not in file.named:
            raise _unfit(file.path, name, "a weight of the file", "no such weight", error)
        dtype = DTYPES.get(stub.data_type)
        if array.dtype != dtype:
            raise _unfit(file.path, name, str(dtype), str(array.dtype), error)
        if not (name in file.weights or stub.HasField("raw_data")):
            raise _unfit(file.path, name, "a weight as raw bytes", "another form", error)


def _resize(
    graph: Graph,
    stub: Tensor,
    shape: tuple[int, ...],
    path: Path,
    error: type[InputError],
) -> None:
    """Give a weight of the head another number of rows, and its name's value_info too."""
    old = list(stub.dims)
    if stub.name not in HEAD or list(shape[1:]) != old[1:] or not shape or shape[0] < 1:
        raise _unfit(path, stub.name, f"shape {old}", f"shape {list(shape)}", error)
    stub.dims[0] = shape[0]
    for info in graph.value_info:
        if info.name == stub.name:
            info.type.tensor_type.shape.dim[0].dim_value = shape[0]
    last = graph.output[0].type.tensor_type.shape.dim[-1]
    last.dim_value = shape[0]


def _check_head(graph: Graph, path: Path, error: type[InputError]) -> None:
    """A head of another size is one Linear, the last step, with one row and one bias for each output.

    Then no shape inside the graph but its own tells how many there are.
    """
    rows = [stub.dims[0] for stub in graph.initializer if stub.name in HEAD]
    users = [node for node in graph.node if not set(HEAD).isdisjoint(node.input)]
    dims = graph.output[0].type.tensor_type.shape.dim
    transposed = [a.i for node in users for a in node.attribute if a.name == "transB"]
    if (
        [node.op_type for node in users] != ["Gemm"]
        or transposed != [1]
        or tuple(users[0].input[1:]) != HEAD
        or list(users[0].output) != [value.name for value in graph.output]
        or rows != [dims[1].dim_value] * 2
    ):
        raise _unfit(path, "head", "one Linear as the last step", "another head", error)


def _in_order(graph: Graph, large: Iterable[str]) -> None:
    """Small initializers before large ones, each in the order in which value_info names them all."""
    order = {info.name: index for index, info in enumerate(graph.value_info)}
    names = set(large)
    found = [TensorProto.FromString(t.SerializeToString()) for t in graph.initializer]
    found.sort(key=lambda tensor: (tensor.name in names, order.get(tensor.name, len(order))))
    del graph.initializer[:]
    graph.initializer.extend(found)


def _set_metadata(model: Model, metadata: Mapping[str, str]) -> None:
    """As the exporter orders it: by key."""
    del model.metadata_props[:]
    for key, value in sorted(metadata.items()):
        model.metadata_props.add(key=key, value=value)


def _unfit(path: Path, name: str, expected: str, found: str, error: type[InputError]) -> InputError:
    return error(f"{path}, {name}", expected=expected, found=found, remedy="export again in full")
