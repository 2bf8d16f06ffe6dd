"""Writes what merge_plan settled: adapted weights tile by tile, all other tensors by the kernel.

Memory: some tiles of _TILE entries (a weight's, its update's, scratch), whatever the model, the
ranks and the number of adapters. The tiles depend on a tensor's shape alone: the bytes of the output
depend on the inputs, and in the last bit on the BLAS (and its number of threads) that multiplies the
factors, as any product of matrices does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_pslora.config import MergeRule
from edge_pslora.core.merge import maths_dtype, merge_into
from edge_pslora.errors import AdapterError, EdgePsloraError, ModelError
from edge_pslora.merge_plan import Plan
from edge_pslora.workspace.adapter_folder import LoraModule
from edge_pslora.workspace.adapter_update import Tile, tiles, update_part
from edge_pslora.workspace.durable import Append, new_file
from edge_pslora.workspace.tensor_header import (
    DTYPES,
    FLOATS,
    Header,
    TensorSpec,
    build_header,
    file_order,
)
from edge_pslora.workspace.tensors import TensorFile, all_finite

Array = npt.NDArray[Any]
_TILE = 1 << 17


@dataclass(frozen=True)
class _Span:
    """Bytes of the base file that become bytes of the output as they are."""

    offset: int
    length: int


@dataclass(frozen=True)
class _Inputs:
    source: TensorFile
    files: Sequence[TensorFile]
    rule: MergeRule
    max_update: float


@dataclass(frozen=True)
class _Target:
    """An adapted weight of the base, and per adapter its module there."""

    name: str
    spec: TensorSpec
    modules: Sequence[LoraModule | None]


def write_plan(
    out: Path,
    plan: Plan,
    source: TensorFile,
    files: Sequence[TensorFile],
    rule: MergeRule,
    max_update: float,
) -> None:
    """Write `out`, whole or not at all.

    Raises:
        AdapterError: an update that is not finite, that changes nothing, that overflows, or that is
            more than max_update times the weight (Frobenius norms; a weight of zeros sets no limit).
        ModelError: a base weight that is not finite, or a file that changed while it was read.
    """
    inputs = _Inputs(source, files, rule, max_update)
    _check_copies(plan, inputs)
    with new_file(out) as append:
        append(build_header(plan.specs, source.header.metadata))
        for piece in _pieces(plan, source.header):
            if isinstance(piece, _Span):
                append.copy(
                    source.descriptor, piece.offset, piece.length, source.path, error=source.error
                )
            elif piece in plan.modules:
                target = _Target(piece, plan.specs[piece], plan.modules[piece])
                _write_merged(target, inputs, append)
            elif piece in plan.whole:
                index, key = plan.whole[piece]
                _write_whole(piece, plan.specs[piece].dtype, files[index], key, append)
            else:
                _write_whole(piece, plan.specs[piece].dtype, source, piece, append)


def _pieces(plan: Plan, base: Header) -> Iterator[_Span | str]:
    """In file order: spans to copy, as long as they can be, and names of tensors to look at.

    BOOL is among the latter, since not every byte is one.
    """
    span = _Span(0, 0)
    for name in file_order(plan.specs):
        copied = not (
            name in plan.modules or name in plan.whole or plan.specs[name].dtype == "BOOL"
        )
        if copied and span.length and base.offsets[name] == span.offset + span.length:
            span = _Span(span.offset, span.length + base.specs[name].bytes)
            continue
        if span.length:
            yield span
        if not copied:
            yield name
        span = _Span(base.offsets[name], base.specs[name].bytes) if copied else _Span(0, 0)
    if span.length:
        yield span


def _write_merged(target: _Target, inputs: _Inputs, append: Append) -> None:
    dtype, shape = DTYPES[target.spec.dtype], target.spec.shape
    size = min(_TILE, math.prod(shape))
    original = np.empty(size, dtype)
    buffers = np.empty((3, size), maths_dtype(dtype))
    changed, zero = False, True
    added = weight = 0.0  # sums of squares
    for tile in tiles(shape, _TILE):
        before = original[: tile.size]
        merged, running, spare = buffers[:, : tile.size]
        inputs.source.read_part(target.name, tile.first, before)
        _fold(target, inputs, tile, merged, running, spare)
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(spare, before)
            added += float(np.dot(merged, merged))
            weight += float(np.dot(spare, spare))
            np.add(spare, merged, spare)
            after = spare.astype(dtype, copy=False)
        if not all_finite(after):
            raise _not_finite(target, inputs, before, merged)
        if not changed:
            zero = zero and not merged.any()
            changed = not np.array_equal(after, before)
        append(after.view(np.uint8).data)
    if not changed:
        found = "an update that is zero" if zero else "one too small for its dtype"
        raise _unusable(target, inputs, "a merge that changes the weight", found)
    if weight > 0 and not math.sqrt(added / weight) <= inputs.max_update:
        limit = f"an update of at most {inputs.max_update:g} times the weight"
        raise _unusable(target, inputs, limit, f"{math.sqrt(added / weight):.3g} times")


def _fold(
    target: _Target, inputs: _Inputs, tile: Tile, merged: Array, running: Array, delta: Array
) -> None:
    """merged [tile.size] <- M_T; an adapter without this module is a session of update zero."""
    rule, shape = inputs.rule, target.spec.shape
    sessions = enumerate(zip(target.modules, inputs.files, strict=True), start=1)
    steps = [  # under the other rules a zero update changes nothing
        (session, module, file)
        for session, (module, file) in sessions
        if module is not None or rule == "average"
    ]
    if len(steps) == 1 and steps[0][1] is not None:  # M_1 = D_1 under every rule
        update_part(steps[0][2], steps[0][1], shape, tile, merged)
        return
    merged.fill(0)
    running.fill(0)
    for session, module, file in steps:
        if module is None:
            delta.fill(0)
        else:
            update_part(file, module, shape, tile, delta)
        if rule == "cumulative":
            with np.errstate(over="ignore", invalid="ignore"):
                np.add(running, delta, running)
        try:
            merge_into(merged, rule, merged, running if rule == "cumulative" else delta, session)
        except EdgePsloraError as problem:
            raise _unusable(target, inputs, problem.expected, problem.found) from problem


def _write_whole(name: str, code: str, file: TensorFile, key: str, append: Append) -> None:
    """A tensor that an adapter saved whole, in the base's dtype (or one of the base as it is)."""
    spec = file.header.specs[key]
    for first in range(0, math.prod(spec.shape), _TILE):
        part = np.empty(min(_TILE, math.prod(spec.shape) - first), DTYPES[spec.dtype])
        file.read_part(key, first, part, finite=True)
        with np.errstate(over="ignore"):
            result = part.astype(DTYPES[code], copy=False)
        if code in FLOATS and not all_finite(result):
            raise AdapterError(
                f"{file.path}, {name}",
                expected=f"values that {DTYPES[code]} can hold",
                found="an overflow",
                remedy="train the adapter again or leave it out; nothing was written",
            )
        append(result.view(np.uint8).data)


def _check_copies(plan: Plan, inputs: _Inputs) -> None:
    """Copies of base tensors that adapters carry show whether it is the right base."""
    source = inputs.source
    for name, copies in plan.copies.items():
        spec = source.header.specs[name]
        for index, key in copies:
            file = inputs.files[index]
            for first in range(0, math.prod(spec.shape), _TILE):
                size = min(_TILE, math.prod(spec.shape) - first)
                one = np.empty(size, DTYPES[spec.dtype])
                other = np.empty(size, DTYPES[file.header.specs[key].dtype])
                source.read_part(name, first, one)
                file.read_part(key, first, other)
                with np.errstate(invalid="ignore"):  # a signalling NaN is equal to nothing
                    equal = np.array_equal(one, other)
                if not equal:
                    raise AdapterError(
                        f"{file.path}, {key}",
                        expected=f"a copy of the base's {name}",
                        found="other values",
                        remedy="use the base model that the adapter was trained on",
                    )


def _not_finite(target: _Target, inputs: _Inputs, before: Array, merged: Array) -> EdgePsloraError:
    """Blames the base, the update or the dtype, whichever it is."""
    if not all_finite(before):
        return ModelError(
            f"{inputs.source.path}, {target.name}",
            expected="finite values",
            found="NaN or infinity",
            remedy="do not use this file; get it again from its source",
        )
    if not all_finite(merged):
        return _unusable(target, inputs, "finite values only", "an update that is not finite")
    return _unusable(target, inputs, f"values that {before.dtype} can hold", "an overflow")


def _unusable(target: _Target, inputs: _Inputs, expected: str, found: str) -> AdapterError:
    folders = zip(target.modules, inputs.files, strict=True)
    names = [str(file.path.parent) for module, file in folders if module is not None]
    return AdapterError(
        f"{target.name} from {', '.join(names)}",
        expected=expected,
        found=found,
        remedy="train the adapter again or leave it out; nothing was written",
    )
