"""Reading our ONNX files without their weights: where each lies, and the model around them. No torch.

Only a file whose bytes lie exactly as `onnx_file.plan` puts them is taken for one of ours: another
tool that saved it again, a cut, or a changed length shows before anything is done with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from edge_pslora.errors import InputError, ModelError
from edge_pslora.exporters import onnx_file as layout
from edge_pslora.exporters.onnx_file import Stored
from edge_pslora.exporters.onnx_proto import (
    DTYPES,
    GRAPH_INITIALIZER,
    MODEL_GRAPH,
    TENSOR_RAW_DATA,
    Model,
    ModelProto,
    Tensor,
    TensorProto,
)
from edge_pslora.workspace.reading import open_regular, read_exactly

MAX_MODEL = 64 << 20  # bytes of all that is not a large weight
_WINDOW = 1 << 18
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_REMEDY = "give a model.onnx that edge-pslora wrote, or export again in full"


@dataclass(frozen=True)
class ModelFile:
    """An open file of ours; see open_model.

    model: its large weights have no data. weights: by name, in the file's order. data: the path of
    the second file, or None. metadata: metadata_props by key. named: the weights of `pslora.layout`;
    the other initializers are constants of the graph.
    """

    path: Path
    model: Model
    weights: Mapping[str, Stored]
    data: Path | None
    metadata: Mapping[str, str]
    named: frozenset[str]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of the large weights."""
        return {name: weight.nbytes for name, weight in self.weights.items()}

    @property
    def initializers(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in self.model.graph.initializer}


@contextmanager
def open_model(path: Path, *, error: type[InputError] = ModelError) -> Iterator[ModelFile]:
    """Open an ONNX file of ours; nothing of size is read.

    Args:
        path: a regular file, no link.
        error: the class to raise: whose file it is.

    Raises:
        error: no ONNX file, not as our exporter writes it, a length that does not fit, weights
            outside the folder, or a transform that is not known.
    """
    with ExitStack() as stack:
        descriptor, size = stack.enter_context(_opened(path, error))
        model, places = _light(descriptor, size, path, error)
        data = _data_path(model, path, error)
        if places and data is not None:
            raise error(
                str(path),
                expected="weights in this file or in one beside it",
                found="some in each",
                remedy=_REMEDY,
            )
        weights = {name: Stored(descriptor, *place, path, error) for name, place in places.items()}
        if data is not None:
            descriptor, data_size = stack.enter_context(_opened(data, error))
            weights = _references(model, descriptor, data, error)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        named = _named(model, metadata, path, error)
        file = ModelFile(path, model, weights, data, metadata, named)
        _check_weights(file, error)
        sizes = (size,) if data is None else (size, data_size)
        _check_plan(file, sizes, places, error)
        yield file


def external_name(path: Path) -> str:
    """The name of the second file of the model `path`."""
    return path.name + "_data"


def is_interim(name: str, path: Path) -> bool:
    """Whether a name is one that the second file has for a moment while a model is replaced."""
    pattern = rf"{re.escape(external_name(path))}\.[0-9a-f]{{16}}"
    return re.fullmatch(pattern, name) is not None


@contextmanager
def _opened(path: Path, error: type[InputError]) -> Iterator[tuple[int, int]]:
    if path.is_symlink():
        raise error(str(path), expected="a file", found="a link", remedy="give the file itself")
    with open_regular(path, error=error) as opened:
        yield opened


def _light(
    descriptor: int, size: int, path: Path, error: type[InputError]
) -> tuple[Model, dict[str, tuple[int, int]]]:
    """The model without the raw data of large initializers; (offset, length) of those, by name."""
    reader = _Reader(descriptor, path, error)
    model, graph = bytearray(), bytearray()
    places: dict[str, tuple[int, int]] = {}
    for field in reader.fields(0, size):
        if field.number != MODEL_GRAPH or field.wire != _BYTES:
            reader.keep(field.start, field.end, model)
            continue
        for part in reader.fields(field.body, field.end):
            raw = reader.large_raw(part)
            if raw is None:
                reader.keep(part.start, part.end, graph)
                continue
            stub = bytearray()
            reader.keep(part.body, raw.start, stub)
            reader.keep(raw.end, part.end, stub)
            name = reader.parse(TensorProto(), stub).name
            if name in places:
                raise reader.bad("weights with names of their own", f"{name} twice")
            places[name] = (raw.body, raw.end - raw.body)
            graph += layout.field_head(GRAPH_INITIALIZER, len(stub)) + stub
        model += layout.field_head(MODEL_GRAPH, len(graph)) + graph
    return reader.parse(ModelProto(), model), places


@dataclass(frozen=True)
class _Field:
    """start: of its tag; body: of its contents; end: after them. Positions in the file."""

    number: int
    wire: int
    start: int
    body: int
    end: int


class _Reader:
    """Walks a protobuf message in a file, by windows; counts what is kept of it."""

    def __init__(self, descriptor: int, path: Path, error: type[InputError]) -> None:
        self.descriptor, self.path, self.error = descriptor, path, error
        self.window, self.first, self.kept = b"", 0, 0

    def bad(self, expected: str, found: str) -> InputError:
        return self.error(str(self.path), expected=expected, found=found, remedy=_REMEDY)

    def fields(self, start: int, end: int) -> Iterator[_Field]:
        """The fields of the message that lies from `start` to `end`."""
        while start < end:
            tag, body = self._varint(start, end)
            wire, length = tag & 7, 0
            if wire == _BYTES:
                length, body = self._varint(body, end)
            elif wire in (_FIXED64, _FIXED32):
                length = 8 if wire == _FIXED64 else 4
            elif wire == _VARINT:
                length = self._varint(body, end)[1] - body
            else:
                raise self.bad("an ONNX file", f"no protobuf field at {start}")
            if length > end - body or tag < 8:  # there is no field 0: a file of zeros has no end
                raise self.bad("an ONNX file", f"a field of {length} bytes at {start}: cut short")
            yield _Field(tag >> 3, wire, start, body, body + length)
            start = body + length

    def large_raw(self, field: _Field) -> _Field | None:
        """The raw data of an initializer of the graph, if that is what it is, and it is large."""
        initializer = field.number == GRAPH_INITIALIZER and field.wire == _BYTES
        if not initializer or field.end - field.body < layout.LARGE:
            return None
        for part in self.fields(field.body, field.end):
            raw = part.number == TENSOR_RAW_DATA and part.wire == _BYTES
            if raw and part.end - part.body >= layout.LARGE:
                return part
        return None

    def keep(self, start: int, end: int, into: bytearray) -> None:
        """Append the file's bytes from `start` to `end`."""
        self.kept += end - start
        if self.kept > MAX_MODEL:
            found = "more: its weights are not stored as edge-pslora stores them"
            raise self.bad(f"at most {MAX_MODEL} bytes beside the weights", found)
        if self.first <= start and end <= self.first + len(self.window):
            into += self.window[start - self.first : end - self.first]
        else:
            into += read_exactly(self.descriptor, start, end - start, self.path, error=self.error)

    def parse(self, message: Any, data: bytearray) -> Any:
        try:
            message.ParseFromString(bytes(data))
        except DecodeError as problem:
            raise self.bad("an ONNX file", str(problem)) from problem
        return message

    def _varint(self, start: int, end: int) -> tuple[int, int]:
        """The number at `start`, and the position after it."""
        longest = min(10, end - start)
        if not (self.first <= start and start + longest <= self.first + len(self.window)):
            size = min(_WINDOW, end - start)
            self.window = read_exactly(self.descriptor, start, size, self.path, error=self.error)
            self.first = start
        value, at = 0, start - self.first
        for index in range(longest):
            byte = self.window[at + index]
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return value, start + index + 1
        raise self.bad("an ONNX file", f"no protobuf field at {start}")


def _data_path(model: Model, path: Path, error: type[InputError]) -> Path | None:
    """The one file that the large weights refer to; beside the model and named after it."""
    names = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    if not names:
        return None
    name = min(names)
    if len(names) > 1 or not (name == external_name(path) or is_interim(name, path)):
        raise error(
            str(path),
            expected=f"weights in {external_name(path)} beside it",
            found=ascii(", ".join(sorted(names))),
            remedy=_REMEDY,
        )
    return path.with_name(name)


def _references(
    model: Model, descriptor: int, data: Path, error: type[InputError]
) -> dict[str, Stored]:
    weights = {}
    for tensor in model.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if not entries:
            continue
        numbers = [entries.get(key, "") for key in ("offset", "length")]
        if not all(re.fullmatch(r"[0-9]{1,15}", number) for number in numbers):
            raise error(
                f"{data}, {tensor.name}",
                expected="an offset and a length",
                found=ascii(numbers),
                remedy=_REMEDY,
            )
        weights[tensor.name] = Stored(descriptor, int(numbers[0]), int(numbers[1]), data, error)
    return weights


def _named(
    model: Model, metadata: Mapping[str, str], path: Path, error: type[InputError]
) -> frozenset[str]:
    """`pslora.layout` names weights of the file, and only transforms that are known."""
    names = {tensor.name for tensor in model.graph.initializer}
    try:
        entries = json.loads(metadata.get(layout.LAYOUT_KEY, "null"))
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, dict):
        raise error(
            str(path),
            expected=f"{layout.LAYOUT_KEY} in its metadata",
            found="none: edge-pslora did not write this file",
            remedy=_REMEDY,
        )
    for name, entry in entries.items():
        if entry != {"source": name, "transform": "identity"} or name not in names:
            raise error(
                f"{path}, {name}",
                expected="a weight of the file, stored as the model has it",
                found=json.dumps(entry),
                remedy="use the version of edge-pslora that wrote it",
            )
    return frozenset(entries)


def _check_weights(file: ModelFile, error: type[InputError]) -> None:
    """Each weight has the bytes that its shape and type need."""
    stubs = file.initializers
    for name, weight in file.weights.items():
        stub = stubs[name]
        dtype = DTYPES.get(stub.data_type)
        size = 0 if dtype is None else dtype.itemsize
        for dim in stub.dims:
            size *= dim
        if size != weight.nbytes:
            raise error(
                f"{file.path}, {name}",
                expected=f"{size} bytes for the shape {list(stub.dims)}",
                found=f"{weight.nbytes} bytes",
                remedy=_REMEDY,
            )


def _check_plan(
    file: ModelFile,
    sizes: tuple[int, ...],
    places: Mapping[str, tuple[int, int]],
    error: type[InputError],
) -> None:
    """Every byte that is not of a weight is where the exporter would have put it."""
    data_name = None if file.data is None else file.data.name
    found = layout.plan(file.model, file.sizes, data_name)
    same = len(found.parts()) == len(sizes)
    for segments, size in zip(found.parts(), sizes, strict=False):
        same = same and layout.offsets(segments, file.sizes)[1] == size
    last = found.model if found.data is None else found.data
    expected = layout.offsets(last, file.sizes)[0]
    same = same and expected == {name: w.offset for name, w in file.weights.items()}
    if same:
        with _opened(file.path, error) as (descriptor, _):
            position = 0
            for segment in found.model:
                if isinstance(segment, bytes):
                    length = len(segment)
                    stored = read_exactly(descriptor, position, length, file.path, error=error)
                    same = same and stored == segment
                    position += length
                else:
                    position += file.sizes[segment]
    if not same:
        raise error(
            str(file.path),
            expected="a file as edge-pslora writes it",
            found="other lengths or another order: cut short, or saved again by another tool",
            remedy=_REMEDY,
        )
