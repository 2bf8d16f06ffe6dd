"""A generation as the smallest update: its session's factors, and what else it changed. No torch.

A receiver with the base and the parent's model replays it (edge_pslora.update.replay) and gets the
published model.safetensors bit for bit; that is tried here before the delta leaves the house.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_pslora.errors import AdapterError, GateRefusedError, UsageError
from edge_pslora.exporters.delta_onnx import onnx_part
from edge_pslora.exporters.generation_update import stored_names, weight_name
from edge_pslora.exporters.lora_factors import Array
from edge_pslora.exporters.peft_adapter import read_peft_adapter
from edge_pslora.update.delta import RULES, Delta, DeltaLayer
from edge_pslora.update.delta_file import DELTA_FILE, smallest_form, write_delta
from edge_pslora.update.replay import check_replay
from edge_pslora.workspace import layout
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.tensor_header import FLOATS
from edge_pslora.workspace.tensors import TensorFile, open_tensors
from edge_pslora.workspace.workspace import Workspace

_CHUNK = 1 << 20  # entries
Factors = Mapping[str, tuple[Array, Array]]  # tensor name -> A [r, in], B [out, r], float32


def export_delta(opened: Workspace, chosen: Generation, staged: Path) -> Mapping[str, Any]:
    """Write delta.safetensors into `staged`; gives the facts of format delta.

    Raises:
        UsageError: a generation that no receiver could replay.
        GateRefusedError: the replay is not the published model.
    """
    _check_replayable(chosen)
    opened.verify_base()
    number = chosen.manifest.parent
    parent = None if number is None else opened.generation(number)
    base_path = opened.base / layout.MODEL
    parent_path = None if parent is None else parent.file(layout.MODEL)
    path = staged / DELTA_FILE
    notes: list[str] = []
    with ExitStack() as stack:
        base = stack.enter_context(open_tensors(base_path))
        before = base if parent_path is None else stack.enter_context(open_tensors(parent_path))
        after = stack.enter_context(open_tensors(chosen.file(layout.MODEL)))
        delta, factors = _described(opened, chosen, parent, after)
        touched = {layer.name for layer in delta.layers}
        others = [name for name in after.names if name not in touched]
        kinds = {name: _change(before, after, name) for name in others}
        delta = replace(delta, widened=tuple(n for n in others if kinds[n] == "widened"))
        new = {name: after.header.specs[name] for name in others if kinds[name] == "new"}
        if parent is not None and chosen.has(layout.ONNX):
            part, note = onnx_part(chosen, parent, after, [*touched, *new], staged)
            delta, notes = replace(delta, onnx=part), notes + note
        write_delta(path, delta, factors, new, after.read)
    _prove(path, base_path, parent_path, chosen)
    size, whole = path.stat().st_size, delta.model.bytes
    return {
        "parent": number,
        "factors": delta.factors,
        "onnx": delta.onnx is not None,
        "delta_bytes": size,
        "model_bytes": whole,
        "notes": [
            f"1/{whole / size:.0f} of model.safetensors; replayed here, it gave that file bit for bit",
            *notes,
        ],
    }


def _check_replayable(chosen: Generation) -> None:
    rule = chosen.manifest.config.get("merge")
    if rule not in RULES:
        found = "none" if rule is None else f"{rule}, which joins running sums"
        raise _impossible(chosen, f"a merge rule of {', '.join(RULES)}", found)
    if chosen.manifest.parent is None and chosen.manifest.metrics.get("imported"):
        raise _impossible(
            chosen, "a first session on the base alone", "one that began with imported adapters"
        )


def _described(
    opened: Workspace,
    chosen: Generation,
    parent: Generation | None,
    after: TensorFile,
) -> tuple[Delta, Factors]:
    """The delta but for what changed beside the layers, and the factors of these."""
    prefix = f"{layout.ADAPTER}/"
    chosen.verify([name for name in chosen.manifest.files if name.startswith(prefix)])
    adapter = read_peft_adapter(chosen.path / layout.ADAPTER)
    factors: dict[str, tuple[Array, Array]] = {}
    layers: list[DeltaLayer] = []
    for path, layer in adapter.layers.items():
        name = weight_name(path, layer.kind, stored_names(opened), after)
        A, B = layer.A.reshape(layer.rank, -1), layer.B.reshape(len(layer.B), -1)
        factors[name] = A, B
        layers.append(DeltaLayer(name, layer.kind, layer.rank))
    scalings = {layer.scaling for layer in adapter.layers.values()}
    if len(scalings) != 1:
        raise _impossible(chosen, "one scaling for all layers", f"{len(scalings)}")
    files = chosen.manifest.files
    base_model = opened.header.base_files[layout.MODEL]
    delta = Delta(
        generation=chosen.number,
        parent=chosen.manifest.parent,
        session=int(chosen.manifest.metrics["sessions"]),
        rule=chosen.manifest.config["merge"],
        scaling=float(scalings.pop()),
        factors=smallest_form(factors),
        layers=tuple(sorted(layers, key=lambda layer: layer.name)),
        widened=(),
        base_digest=opened.header.base_digest,
        base_model=base_model,
        parent_model=base_model if parent is None else parent.manifest.files[layout.MODEL],
        model=files[layout.MODEL],
        model_metadata=after.header.metadata,
        onnx=None,
        labels=chosen.labels,
        task_type=opened.header.task_type,
    )
    return delta, factors


def _change(before: TensorFile, after: TensorFile, name: str) -> str:
    """same, widened (equal once it is float32) or new."""
    old, spec = before.header.specs.get(name), after.header.specs[name]
    if old is None or old.shape != spec.shape:
        return "new"
    wider = spec.dtype == "F32" and old.dtype in FLOATS
    if old.dtype != spec.dtype and not wider:
        return "new"
    for first in range(0, math.prod(spec.shape), _CHUNK):
        one, other = (file.part(name, first, _CHUNK) for file in (before, after))
        with np.errstate(over="ignore", invalid="ignore"):
            if one.astype(other.dtype, copy=False).tobytes() != other.tobytes():
                return "new"
    return "same" if old.dtype == spec.dtype else "widened"


def _prove(path: Path, base: Path, parent: Path | None, chosen: Generation) -> None:
    try:
        check_replay(path, base, parent)
    except AdapterError as problem:
        raise GateRefusedError(
            f"delta of generation {chosen.number}",
            expected="a replay that gives the published model.safetensors bit for bit",
            found=problem.found,
            remedy="nothing was written; a generation of an earlier version, whose factors were not "
            "rounded, can be exported as safetensors",
        ) from problem


def _impossible(chosen: Generation, expected: str, found: str) -> UsageError:
    return UsageError(
        f"--format delta, generation {chosen.number}",
        expected=expected,
        found=found,
        remedy="export safetensors instead: no receiver could replay this one",
    )
