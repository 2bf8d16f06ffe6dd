"""The receiver's side of a delta: base, parent and delta in, the next model out, bit for bit. No torch.

Everything is checked before a byte is written: the delta's own sha256, those of the base and of the
parent, names and shapes. The result gets its name only if its length and sha256 are those of the
published model. Tensors that do not change are copied by the kernel; of the others a tile is held.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_pslora.config import FactorForm, MergeRule
from edge_pslora.errors import AdapterError, ModelError, UsageError
from edge_pslora.update.delta import Delta
from edge_pslora.update.delta_file import DELTA_FILE, DeltaFile, open_delta
from edge_pslora.update.replay_plan import Plan, entries, make_plan
from edge_pslora.update.replay_write import Digester, write_plan
from edge_pslora.workspace import durable, layout
from edge_pslora.workspace.beside import beside
from edge_pslora.workspace.reading import FileDigest, digest_open
from edge_pslora.workspace.tensor_header import DTYPES, file_order
from edge_pslora.workspace.tensors import TensorFile, open_tensors

Array = npt.NDArray[Any]
Then = Callable[[Delta, Mapping[str, Array]], None]
_SPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class ReplayReport:
    """What was done. replayed, replaced and widened name tensors of `out`; parent None: the base."""

    out: str
    generation: int
    parent: int | None
    rule: MergeRule
    factors: FactorForm
    labels: tuple[str, ...]
    tensors: int
    replayed: tuple[str, ...]
    replaced: tuple[str, ...]
    widened: tuple[str, ...]
    bytes: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def replay(
    delta: Path, base: Path, parent: Path | None, out: Path, *, then: Then | None = None
) -> ReplayReport:
    """Write the merged model of the delta's generation; it equals the published file in every byte.

    Args:
        delta: delta.safetensors, or the folder of the export.
        base: the base model's safetensors file, or a folder with model.safetensors.
        parent: the model of the generation before, likewise; None if that is the base itself.
        out: the file to write; replaced when it exists.
        then: called once the result was found right and before it gets its name, with every tensor
            that the delta changes, as views of the result; what it raises ends the replay.

    Raises:
        AdapterError: the delta is damaged, of another version, or does not lead to what it promises.
        ModelError: the base or the parent are not those that the delta was made for.
        UsageError: a parent is missing, or `out` cannot be used.
    """
    delta, base = _inside(delta, DELTA_FILE), _inside(base, layout.MODEL)
    parent = None if parent is None else _inside(parent, layout.MODEL)
    _check_out(out, [delta, base, *([] if parent is None else [parent])])
    with _opened(delta, base, parent) as (opened, plan):
        durable.remove_leftovers(out.absolute().parent, out.name)
        durable.require_free_space(out.absolute().parent, opened.delta.model.bytes + _SPARE_BYTES)
        with durable.new_file(out) as append:
            write_plan(plan, opened, append)
            _require(append.digest(), opened)
            if then is not None:
                then(opened.delta, _changed(append.descriptor, plan, opened))
        names = tuple(layer.name for layer in opened.delta.layers)
        return ReplayReport(
            out=str(out),
            generation=opened.delta.generation,
            parent=opened.delta.parent,
            rule=opened.delta.rule,
            factors=opened.delta.factors,
            labels=opened.delta.labels,
            tensors=len(plan.specs),
            replayed=names,
            replaced=tuple(sorted(opened.new)),
            widened=opened.delta.widened,
            bytes=opened.delta.model.bytes,
            sha256=opened.delta.model.sha256,
        )


def check_replay(delta: Path, base: Path, parent: Path | None) -> None:
    """All of `replay` but the file: for the sender, before it ships the delta.

    Raises:
        EdgePsloraError: as replay.
    """
    with _opened(delta, base, parent) as (opened, plan):
        digester = Digester(hashlib.sha256())
        write_plan(plan, opened, digester)
        _require(digester.digest(), opened)


@contextmanager
def _opened(delta: Path, base: Path, parent: Path | None) -> Iterator[tuple[DeltaFile, Plan]]:
    with ExitStack() as stack:
        opened = stack.enter_context(open_delta(delta))
        if parent is None and opened.delta.parent is not None:
            raise UsageError(
                "--parent",
                expected=f"the model of generation {opened.delta.parent}, which this delta goes on from",
                found="none",
                remedy="give its model.safetensors",
            )
        first = stack.enter_context(open_tensors(base, error=ModelError))
        second = first
        if parent is not None:
            second = stack.enter_context(open_tensors(parent, error=ModelError))
        _check_inputs(opened, first, second)
        yield opened, make_plan(opened, first, second)


def _check_inputs(opened: DeltaFile, base: TensorFile, parent: TensorFile) -> None:
    """The files are those that the delta was made for; two are hashed side by side."""
    delta = opened.delta
    number = "the base" if delta.parent is None else f"generation {delta.parent}"
    wanted = [(base, delta.base_model, "the base"), (parent, delta.parent_model, number)]
    if parent is base:
        digests = [_digest(base)] * 2
    else:
        with beside(partial(_digest, parent)) as of_parent:
            digests = [_digest(base), of_parent()]
    for (file, digest, name), found in zip(wanted, digests, strict=True):
        if found != digest:
            raise ModelError(
                str(file.path),
                expected=f"{name} that the delta was made for, sha256 {digest.sha256[:12]}...",
                found=f"{found.bytes} bytes with sha256 {found.sha256[:12]}...",
                remedy="use the file that the delta names, or get the delta for this one",
            )


def _digest(file: TensorFile) -> FileDigest:
    digest = hashlib.sha256()
    size = file.header.file_bytes
    digest_open(file.descriptor, 0, size, file.path, digest, error=file.error)
    return FileDigest(size, digest.hexdigest())


def _changed(descriptor: int, plan: Plan, opened: DeltaFile) -> dict[str, Array]:
    """Views of the tensors that are new, in a result that was written in full."""
    data = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    names = {*plan.layers, *opened.new}
    found: dict[str, Array] = {}
    offset = len(plan.header)
    for name in file_order(plan.specs):
        spec = plan.specs[name]
        if name in names:
            dtype, count = DTYPES[spec.dtype], entries(spec)
            found[name] = np.frombuffer(data, dtype, count, offset).reshape(spec.shape)
        offset += spec.bytes
    return found


def _require(found: FileDigest, opened: DeltaFile) -> None:
    wanted = opened.delta.model
    if found != wanted:
        raise AdapterError(
            str(opened.file.path),
            expected=f"a model of {wanted.bytes} bytes with sha256 {wanted.sha256[:12]}...",
            found=f"{found.bytes} bytes with {found.sha256[:12]}...",
            remedy="nothing was written; get the whole model instead, and report this",
        )


def _inside(path: Path, name: str) -> Path:
    return path / name if path.is_dir() else path


def _check_out(out: Path, inputs: list[Path]) -> None:
    def require(condition: bool, expected: str, found: str) -> None:
        if not condition:
            raise UsageError("--out", expected=expected, found=found, remedy="change the argument")

    require(not out.is_dir(), "a file name", f"the folder {out}")
    require(out.absolute().parent.is_dir(), "a file in an existing folder", str(out))
    clash = out.exists() and any(path.exists() and out.samefile(path) for path in inputs)
    require(not clash, "a file of its own", f"{out}, which is one of the inputs")
