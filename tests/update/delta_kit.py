"""Base, parent, child and the delta between them, small, with the literal arithmetic's result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from edge_pslora.core.factor_forms import rounded
from edge_pslora.update import delta as text
from edge_pslora.update.delta import Delta, DeltaLayer, OnnxPart
from edge_pslora.update.delta_file import write_delta
from edge_pslora.workspace.reading import digest_file
from edge_pslora.workspace.tensor_header import build_header, file_order
from edge_pslora.workspace.tensors import open_tensors, spec_of, write_tensors
from tests.reference_replay import literal_next, literal_update

# kind, shape of the weight
LAYERS: dict[str, tuple[text.LayerKind, tuple[int, ...]]] = {
    "a.linear.weight": ("linear", (4, 3)),
    "a.turned.weight": ("transposed_linear", (3, 4)),
    "b.embed.weight": ("embedding", (5, 3)),
    "b.conv1.weight": ("conv1d", (2, 3, 2)),
    "b.conv2.weight": ("conv2d", (3, 2, 2, 2)),
    "c.in_proj_weight": ("mha_in_proj", (6, 2)),
    "c.out_proj.weight": ("mha_out_proj", (2, 2)),
}
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
RANK, SCALING = 2, 16 / 3


@dataclass(frozen=True)
class Shipment:
    """Files in a folder. wanted: the bytes of the child."""

    base: Path
    parent: Path | None
    delta: Path
    wanted: bytes
    described: Delta
    factors: Mapping[str, tuple[Any, Any]]
    new: Mapping[str, Any]


def ship(
    folder: Path,
    *,
    form: text.FactorForm = "int8",
    rule: text.MergeRule = "constructive",
    dtype: str = "F32",
    first: bool = False,
    still: bool = False,
    layers: Mapping[str, tuple[text.LayerKind, tuple[int, ...]]] = LAYERS,
    seed: int = 0,
) -> Shipment:
    """A base in `dtype`, the parent (if not `first`) and the child in float32, and the delta.

    still: a session that only fitted its head.
    """
    rng = np.random.default_rng(seed)
    base = {n: rng.normal(size=s).astype(DTYPES[dtype]) for n, (_, s) in layers.items()}
    base |= {"norm.bias": rng.normal(size=3).astype(DTYPES[dtype]), "steps": np.arange(3)}
    base["pooler.mask"] = np.array([True, False])
    before = {n: v.astype(np.float32) if v.dtype.kind in "fV" else v for n, v in base.items()}
    base_path, parent_path = folder / "base.safetensors", None
    write_tensors(base_path, base, {"format": "pt"})
    if not first:
        for name in layers:
            before[name] = before[name] + 0.2 * rng.normal(size=before[name].shape).astype("f4")
        before["head.weight"] = rng.normal(size=(2, 3)).astype(np.float32)
        parent_path = folder / "parent.safetensors"
        write_tensors(parent_path, before, {"format": "pt"})
    after, factors = dict(before), {}
    for name, (kind, shape) in layers.items():
        turned = kind in ("embedding", "transposed_linear")
        out, size = shape[::-1] if turned else (shape[0], int(np.prod(shape[1:])))
        A = rounded(form, rng.normal(size=(RANK, size)).astype(np.float32))
        B = rounded(
            form, (0.0 if still else 0.2) * rng.normal(size=(RANK, out)).astype(np.float32)
        ).T
        update = literal_update(A, B, SCALING)
        update = update.T if turned else update.reshape(shape)
        start = base[name].astype(np.float32)
        after[name] = literal_next(rule, start, before[name], update, 1 if first else 2)
        factors[name] = A, B
    new = {
        "head.weight": rng.normal(size=(4, 3)).astype(np.float32),
        "norm.bias": rng.normal(size=3).astype(np.float32),
    }
    after |= new
    child = folder / "child.safetensors"
    write_tensors(child, after, {"format": "pt"})
    # what is widened without being adapted or replaced
    changed = base if first else before
    widened = sorted(
        n for n, v in changed.items() if n not in (*layers, *new) and v.dtype != after[n].dtype
    )
    described = Delta(
        generation=1 if first else 2,
        parent=None if first else 1,
        session=1 if first else 2,
        rule=rule,
        scaling=SCALING,
        factors=form,
        layers=tuple(DeltaLayer(n, k, RANK) for n, (k, _) in sorted(layers.items())),
        widened=tuple(widened),
        base_digest=hashlib.sha256(b"base").hexdigest(),
        base_model=digest_file(base_path),
        parent_model=digest_file(base_path if parent_path is None else parent_path),
        model=digest_file(child),
        model_metadata={"format": "pt"},
        onnx=OnnxPart({"model.onnx": digest_file(child)}, "backbone.", {"a": ""}, {"k": "v"}),
        labels=("καί", "no"),
        task_type="classification",
    )
    path = folder / "delta.safetensors"
    shipment = Shipment(base_path, parent_path, path, child.read_bytes(), described, factors, new)
    write_again(shipment, described)
    return shipment


def write_again(shipment: Shipment, delta: Delta) -> None:
    """The delta file with another description; its own sha256 is right."""
    specs = {name: spec_of(array) for name, array in shipment.new.items()}
    write_delta(shipment.delta, delta, shipment.factors, specs, shipment.new.__getitem__)


def resealed(path: Path, change: Any) -> None:
    """change(tensors, metadata) by a forger: whatever the file then says, its sha256 is right."""
    with open_tensors(path) as file:
        tensors = {name: file.read(name) for name in file.names}
        metadata = dict(file.header.metadata)
    change(tensors, metadata)
    specs = {name: spec_of(array) for name, array in tensors.items()}
    metadata["sha256"] = "0" * 64
    data = b"".join(np.ascontiguousarray(tensors[name]).tobytes() for name in file_order(specs))
    metadata["sha256"] = hashlib.sha256(build_header(specs, metadata) + data).hexdigest()
    path.write_bytes(build_header(specs, metadata) + data)


def described_otherwise(path: Path, **changes: Any) -> None:
    """Other values in the description, each as JSON gives it."""

    def change(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
        metadata["delta"] = json.dumps(json.loads(metadata["delta"]) | changes)

    resealed(path, change)
