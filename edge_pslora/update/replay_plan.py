"""What a replay does to each tensor, settled before the first byte is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edge_pslora.errors import AdapterError, InputError
from edge_pslora.update.delta_file import NEW, DeltaFile, LayerPlace
from edge_pslora.workspace.tensor_header import FLOATS, TensorSpec, build_header, file_order
from edge_pslora.workspace.tensors import TensorFile


@dataclass(frozen=True)
class Span:
    """Bytes of an open file that become bytes of the result as they are."""

    file: TensorFile
    offset: int
    length: int


@dataclass(frozen=True)
class Widen:
    """A float tensor of the parent that the result has in float32."""

    name: str


@dataclass(frozen=True)
class Plan:
    """specs: every tensor of the result. layers: where the factors of each adapted weight are."""

    base: TensorFile
    parent: TensorFile
    specs: Mapping[str, TensorSpec]
    header: bytes
    layers: Mapping[str, LayerPlace]


def make_plan(opened: DeltaFile, base: TensorFile, parent: TensorFile) -> Plan:
    """Raises:
    AdapterError: the delta names tensors that are not there, or whose shapes do not fit.
    """
    delta, where = opened.delta, str(opened.file.path)
    old, known = base.header.specs, parent.header.specs
    specs = {**known, **opened.new}
    for name in (*(layer.name for layer in delta.layers), *delta.widened):
        spec = known.get(name)
        if spec is None or spec.dtype not in FLOATS or name in opened.new:
            raise _unfit(where, f"a float tensor {name} of the parent", _described(spec))
        specs[name] = TensorSpec("F32", spec.shape)
    for layer in delta.layers:
        one, other = old.get(layer.name), known[layer.name]
        if one is None or one.shape != other.shape or one.dtype not in FLOATS or not one.shape:
            raise _unfit(
                where, f"a weight {layer.name} {list(other.shape)} of the base", _described(one)
            )
    layers = opened.places({layer.name: known[layer.name].shape for layer in delta.layers})
    header = build_header(specs, delta.model_metadata)
    size = len(header) + sum(spec.bytes for spec in specs.values())
    if size != delta.model.bytes:
        raise _unfit(where, f"tensors for a model of {delta.model.bytes} bytes", f"{size} bytes")
    return Plan(base, parent, specs, header, layers)


def pieces(plan: Plan, opened: DeltaFile) -> Iterator[Span | Widen | LayerPlace]:
    """In the order of the result's file: what to compute, and spans to copy, as long as they can be."""
    span: Span | None = None
    widened = frozenset(opened.delta.widened)
    for name in file_order(plan.specs):
        if name in plan.layers or name in widened:
            if span is not None:
                yield span
            span = None
            yield plan.layers[name] if name in plan.layers else Widen(name)
            continue
        file, key = (opened.file, NEW + name) if name in opened.new else (plan.parent, name)
        offset, length = file.header.offsets[key], plan.specs[name].bytes
        if span is not None and span.file is file and span.offset + span.length == offset:
            span = Span(file, span.offset, span.length + length)
            continue
        if span is not None:
            yield span
        span = Span(file, offset, length)
    if span is not None:
        yield span


def entries(spec: TensorSpec) -> int:
    return math.prod(spec.shape)


def _described(spec: TensorSpec | None) -> str:
    return "no such tensor" if spec is None else f"{spec.dtype} {list(spec.shape)}"


def _unfit(where: str, expected: str, found: str) -> InputError:
    return AdapterError(
        where,
        expected=expected,
        found=found,
        remedy="use the files that the delta was made for; nothing was written",
    )
