"""A generation's files on one side, the model's weights and the session memory on the other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edge_pslora.config import BudgetConfig
from edge_pslora.data.seen import Digests, nothing_seen
from edge_pslora.errors import WorkspaceError
from edge_pslora.models.types import LoadedModel
from edge_pslora.tasks import TASKS
from edge_pslora.training.anchor import AnchorSet
from edge_pslora.training.memory import BaseWeights, Memory
from edge_pslora.training.persist import (
    anchors_from_arrays,
    anchors_to_arrays,
    history_from_arrays,
    history_to_arrays,
)
from edge_pslora.training.persist_head import head_from_arrays, head_to_arrays
from edge_pslora.training.stored import Stored
from edge_pslora.workspace import layout
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.tensors import open_tensors, write_tensors

SEEN = "seen"  # in the anchor file, beside the anchors
RUNNING = "running.safetensors"  # only under merge `cumulative`
HEAD_NAME = "pslora_head"  # the head's name in model.safetensors when the base brought none


@contextmanager
def open_base(folder: Path, model: LoadedModel) -> Iterator[BaseWeights]:
    """W0 by weight name, read from base/model.safetensors one at a time, float32."""
    with open_tensors(folder / layout.MODEL) as file:

        def read(name: str) -> torch.Tensor:
            array = file.read(model.file_names.get(name, name))
            return torch.from_numpy(array.astype(np.float32))

        yield read


def head_tensor_names(model: LoadedModel) -> tuple[str, str]:
    """Names of the head's weight and bias in model.safetensors."""
    name = HEAD_NAME if model.base_head is None else model.base_head.module_name
    return f"{name}.weight", f"{name}.bias"


def merged_tensors(base: Path, model: LoadedModel, memory: Memory) -> dict[str, npt.NDArray[Any]]:
    """Every tensor of the deployed model under the names of the base's file, plus the head.

    What the file holds and the model does not use (a pooler, say) is copied from the base.
    """
    state = model.backbone.model.state_dict()
    tensors = {file: state[name].detach().numpy() for name, file in model.file_names.items()}
    weight, bias = head_tensor_names(model)
    if TASKS[memory.head.task_type].has_head:
        tensors[weight] = memory.head.weight.numpy()
        if model.base_head is None or model.base_head.has_bias:
            tensors[bias] = memory.head.bias.numpy()
    with open_tensors(base / layout.MODEL) as file:
        tensors |= {name: file.read(name) for name in file.names if name not in tensors}
    return tensors


def load_merged(model: LoadedModel, generation: Generation) -> None:
    """Gives the base model the weights of a generation, in place."""
    path = generation.file(layout.MODEL)
    with open_tensors(path) as file, torch.no_grad():
        state = model.backbone.model.state_dict()
        for name, file_name in model.file_names.items():
            value = state[name]
            array = file.read(file_name, finite=True)
            if array.shape != tuple(value.shape):
                raise WorkspaceError(
                    f"{path}, {name}",
                    expected=f"shape {tuple(value.shape)}",
                    found=f"shape {array.shape}",
                    remedy="roll back to an earlier generation",
                )
            value.copy_(torch.from_numpy(array))


def load_memory(generation: Generation) -> Memory:
    """What the generation's session remembered.

    Raises:
        WorkspaceError: damaged, or a signed update brought the generation without it.
    """
    absent = [name for name in (layout.HISTORY, layout.HEAD) if not generation.has(name)]
    if absent and "bundle" in generation.manifest.metrics:
        raise WorkspaceError(
            str(generation.path),
            expected="what a session goes on from",
            found=f"no {' and no '.join(absent)}: the bundle that it came by ships what serving needs",
            remedy="apply one made with `edge-pslora bundle --learn`, or roll back to a generation that "
            "has them",
        )
    history = _read(generation, layout.HISTORY)
    head = _read(generation, layout.HEAD)
    running = None
    if generation.has(RUNNING):
        stored = _read(generation, RUNNING)
        running = {name: torch.from_numpy(array) for name, array in stored.arrays.items()}
    return Memory(
        _sessions(generation),
        history_from_arrays(history, str(generation.path / layout.HISTORY)),
        head_from_arrays(head, str(generation.path / layout.HEAD)),
        running,
    )


def _sessions(generation: Generation) -> int:
    count = generation.manifest.metrics.get("sessions")
    if type(count) is not int or count < 1:
        raise WorkspaceError(
            str(generation.path / layout.MANIFEST),
            expected="the number of sessions in metrics",
            found=ascii(count)[:40],
            remedy="roll back to an earlier generation",
        )
    return count


def load_anchors(generation: Generation) -> AnchorSet | None:
    """The anchor set up to and including that generation; None if it keeps none."""
    if not generation.has(layout.ANCHOR):
        return None
    # NaN is how a table says that a value is missing
    return anchors_from_arrays(
        _read(generation, layout.ANCHOR, finite=False), str(generation.path / layout.ANCHOR)
    )


def load_seen(generation: Generation) -> Digests:
    """Digests of what was learned from up to and including that generation; it lies with the anchors."""
    if not generation.has(layout.ANCHOR):
        return nothing_seen()
    with open_tensors(generation.file(layout.ANCHOR)) as file:
        found = file.read(SEEN) if SEEN in file.names else nothing_seen()
    if found.dtype != np.uint64 or found.ndim != 1:
        raise WorkspaceError(
            str(generation.path / layout.ANCHOR),
            expected="digests of earlier samples",
            found=f"{found.dtype} {list(found.shape)}",
            remedy="roll back to an earlier generation",
        )
    return found


def write_memory(
    folder: Path,
    memory: Memory,
    anchors: AnchorSet | None,
    budget: BudgetConfig,
    seen: Digests,
) -> None:
    """history, head, anchor and (cumulative) running files, durably. Where no sample is kept, no digest
    of one is either."""
    _write(folder / layout.HISTORY, history_to_arrays(memory.history, budget.history_bytes))
    _write(folder / layout.HEAD, head_to_arrays(memory.head, budget.head_bytes))
    if anchors is not None:
        stored = anchors_to_arrays(anchors)
        stored = Stored({**stored.arrays, SEEN: seen}, stored.metadata)
        _write(folder / layout.ANCHOR, stored, finite=False)
    if memory.running is not None:
        write_tensors(folder / RUNNING, {n: t.numpy() for n, t in memory.running.items()})


def _read(generation: Generation, name: str, *, finite: bool = True) -> Stored:
    with open_tensors(generation.file(name)) as file:
        arrays = {key: file.read(key, finite=finite) for key in file.names}
        return Stored(arrays, file.header.metadata)


def _write(path: Path, stored: Stored, *, finite: bool = True) -> None:
    write_tensors(path, dict(stored.arrays), stored.metadata, finite=finite)


@dataclass(frozen=True)
class FileCheckpoints:
    """The training loop's state in one file of the staging area; see training.loop."""

    path: Path

    def load(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]] | None:
        if not self.path.exists():
            return None
        with open_tensors(self.path) as file:
            arrays = {name: file.read(name, finite=True) for name in file.names}
            return arrays, json.loads(file.header.metadata["state"])

    def save(self, arrays: Mapping[str, npt.NDArray[Any]], meta: Mapping[str, Any]) -> None:
        write_tensors(self.path, dict(arrays), {"state": json.dumps(meta)}, finite=True)
