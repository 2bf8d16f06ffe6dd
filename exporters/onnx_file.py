"""How the bytes of our ONNX files lie: what the exporter writes, the reader expects, a patch keeps.

One file: the model's fields, then the graph: all that is small, then each large weight as one field
whose last part is its bytes (https://protobuf.dev/programming-guides/encoding/). Two files: the whole
model with a reference for each large weight, and the weights at multiples of 4096 in the other. The
order of the initializers is the same in both. No torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_pslora.errors import InputError, ModelError
from edge_pslora.exporters.onnx_proto import (
    EXTERNAL,
    GRAPH_INITIALIZER,
    MODEL_GRAPH,
    TENSOR_RAW_DATA,
    Graph,
    Model,
    Tensor,
)
from edge_pslora.workspace.durable import Append
from edge_pslora.workspace.reading import FileDigest, read_into

LAYOUT_KEY = "pslora.layout"
# A protobuf message ends at 2 GB; the graph itself and its strings need room too.
EXTERNAL_ABOVE = 1_500_000_000
LARGE = 1024  # bytes: shapes and scalars always stay in the model
ALIGNMENT = 4096  # bytes: a runtime maps whole pages
_BLOCK = 1 << 20
_SMALL_BLOCK = 1 << 17

Segment = bytes | str  # a str is the name of a weight, whose bytes stand there


class Payload(Protocol):
    """The bytes of one weight, wherever they are."""

    @property
    def nbytes(self) -> int: ...

    def append(self, write: Append) -> None: ...


@dataclass(frozen=True)
class Values:
    """A weight in memory, of any strides."""

    array: npt.NDArray[Any]

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    def append(self, write: Append) -> None:
        write(self.raw())

    def raw(self) -> memoryview:
        """Its bytes in C order."""
        return np.ascontiguousarray(self.array).reshape(-1).view(np.uint8).data


@dataclass(frozen=True)
class Stored:
    """A weight in an open file. path: its name; error: whose file it is."""

    descriptor: int
    offset: int
    nbytes: int
    path: Path
    error: type[InputError] = ModelError

    def append(self, write: Append) -> None:
        write.copy(self.descriptor, self.offset, self.nbytes, self.path, error=self.error)

    def read(self, start: int, into: memoryview) -> None:
        """Its bytes from its own `start` on."""
        read_into(self.descriptor, self.offset + start, into, self.path, error=self.error)

    def blocks(self, buffer: bytearray) -> Iterator[memoryview]:
        """Its bytes, a part at a time, each in the same `buffer`."""
        for start in range(0, self.nbytes, len(buffer)):
            part = memoryview(buffer)[: self.nbytes - start]
            self.read(start, part)
            yield part


def unchanged(old: Mapping[str, Stored], new: Mapping[str, Stored | Values]) -> dict[str, Stored]:
    """Those of the old weights that have the same bytes in `new`; each read up to where it differs."""
    # buffers that stay in the cache; equality of bytearrays is one memcmp, that of memoryviews is not
    mine, theirs = bytearray(_SMALL_BLOCK), bytearray(_SMALL_BLOCK)
    found = {}
    for name, weight in old.items():
        other = new.get(name)
        if other is None or other.nbytes != weight.nbytes:
            continue
        raw = None if isinstance(other, Stored) else other.raw()
        for start in range(0, weight.nbytes, _SMALL_BLOCK):
            length = min(_SMALL_BLOCK, weight.nbytes - start)
            weight.read(start, memoryview(mine)[:length])
            if isinstance(other, Stored):
                other.read(start, memoryview(theirs)[:length])
            elif raw is not None:
                theirs[:length] = raw[start : start + length]
            if length < _SMALL_BLOCK:  # what the last weight left behind counts on neither side
                mine[length:] = theirs[length:]
            if mine != theirs:
                break
        else:
            found[name] = weight
    return found


@dataclass(frozen=True)
class Plan:
    """What follows what in the model file and in its data; data None: one file."""

    model: tuple[Segment, ...]
    data: tuple[Segment, ...] | None

    def parts(self) -> tuple[tuple[Segment, ...], ...]:
        return (self.model,) if self.data is None else (self.model, self.data)


def plan(model: Model, sizes: Mapping[str, int], data_name: str | None) -> Plan:
    """The layout of a model.

    Args:
        model: not changed; its initializers named in `sizes` need no data.
        sizes: bytes of the large weights.
        data_name: of the file beside, for its own; None: one file.
    """
    light = type(model)()  # ours, or the package's
    light.CopyFrom(model)
    stubs = take_initializers(light.graph, sizes)
    for stub in stubs:
        for field in ("raw_data", "external_data", "data_location"):
            stub.ClearField(field)
    if data_name is None or not stubs:
        return Plan(_one_file(light, stubs, sizes), None)
    data: list[Segment] = []
    end = 0
    for stub in stubs:
        gap = -end % ALIGNMENT
        refer(stub, data_name, end + gap, sizes[stub.name])
        data += [bytes(gap), stub.name]
        end += gap + sizes[stub.name]
    light.graph.initializer.extend(stubs)
    return Plan((light.SerializeToString(deterministic=True),), tuple(data))


def refer(stub: Tensor, data_name: str, offset: int, length: int) -> None:
    """Turn an initializer without data into a reference to bytes of a file beside the model."""
    stub.data_location = EXTERNAL
    for key, value in (("location", data_name), ("offset", offset), ("length", length)):
        stub.external_data.add(key=key, value=str(value))


def take_initializers(graph: Graph, names: Mapping[str, Any]) -> list[Tensor]:
    """Remove and return the initializers with these names, in order."""
    taken = [tensor for tensor in graph.initializer if tensor.name in names]
    kept = [tensor for tensor in graph.initializer if tensor.name not in names]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return taken


def offsets(segments: Iterable[Segment], sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Where each weight begins, and the length of all."""
    found, end = {}, 0
    for segment in segments:
        if isinstance(segment, str):
            found[segment] = end
            end += sizes[segment]
        else:
            end += len(segment)
    return found, end


def emit(segments: Iterable[Segment], payloads: Mapping[str, Payload], write: Append) -> None:
    """Append all segments."""
    for segment in segments:
        if isinstance(segment, str):
            payloads[segment].append(write)
        else:
            write(segment)


def digests(layout: Plan, weights: Mapping[str, Stored]) -> tuple[FileDigest, ...]:
    """Length and sha256 of the file or files with this layout; none has to exist."""
    return tuple(_digest(segments, weights) for segments in layout.parts())


def _digest(segments: Iterable[Segment], weights: Mapping[str, Stored]) -> FileDigest:
    digest, length, buffer = hashlib.sha256(), 0, bytearray(_BLOCK)
    for segment in segments:
        if isinstance(segment, str):
            length += weights[segment].nbytes
            for block in weights[segment].blocks(buffer):
                digest.update(block)
        else:
            length += len(segment)
            digest.update(segment)
    return FileDigest(length, digest.hexdigest())


def _one_file(
    light: Model, stubs: Iterable[Tensor], sizes: Mapping[str, int]
) -> tuple[Segment, ...]:
    weights: list[Segment] = []
    for stub in stubs:
        size = sizes[stub.name]
        head = stub.SerializeToString(deterministic=True) + field_head(TENSOR_RAW_DATA, size)
        weights += [field_head(GRAPH_INITIALIZER, len(head) + size) + head, stub.name]
    graph = light.graph.SerializeToString(deterministic=True)
    light.ClearField("graph")
    graph_size = len(graph) + offsets(weights, sizes)[1]
    model = light.SerializeToString(deterministic=True) + field_head(MODEL_GRAPH, graph_size)
    return (model + graph, *weights)


def field_head(number: int, size: int) -> bytes:
    """Tag and length of a length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(size)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
