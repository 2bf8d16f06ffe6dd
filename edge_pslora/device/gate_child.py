"""The process in which a model that came from outside runs for the first time. See local_gate.py.

One JSON object on stdin (Task), two lines on stdout: {"memory": bytes of address space for the model}, when
it is about to be loaded, and {"before": scores or null, "after": likewise, "note": why there are none} or
{"problem": text}. It may be killed, run out of memory or never end: the parent is prepared for that.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_pslora.device.anchors import Anchors, check_outputs, read_anchors, score
from edge_pslora.errors import EdgePsloraError, WorkspaceError
from edge_pslora.exporters.run import OnnxRunner, open_onnx

Array = npt.NDArray[Any]
_SIZES = (
    4,
    64,
    1600,
    16_000,
)  # of free axes, tried in this order: what is too short for a model fails
_SAMPLES = 2


@dataclass(frozen=True)
class Task:
    """new, old: model.onnx files; anchors: a file of the serving generation, or None. memory: bytes of
    address space beside what an idle onnxruntime takes; seconds: of computation."""

    new: str
    new_labels: tuple[str, ...]
    old: str | None
    old_labels: tuple[str, ...]
    anchors: str | None
    task_type: str
    source: Mapping[str, Any]
    memory: int
    seconds: int


def main() -> None:
    task = Task(**json.load(sys.stdin))
    print(json.dumps({"memory": _limit(task)}), flush=True)
    answer: dict[str, Any]
    try:
        answer = _judge(task)
    except EdgePsloraError as problem:
        answer = {"problem": problem.found}
    except ValueError as problem:
        answer = {"problem": str(problem)}
    except MemoryError:
        answer = {"problem": "it needs more memory than it may have"}
    json.dump(answer, sys.stdout)


def _judge(task: Task) -> dict[str, Any]:
    runner = open_onnx(Path(task.new), threads=1)
    anchors, note = _anchors(task)
    if anchors is None:
        _try(runner, task)
        return {"before": None, "after": None, "note": note}
    after = score(_feeding(runner), anchors, task.task_type, task.new_labels, task.old_labels)
    del runner
    try:
        old = open_onnx(Path(task.old or ""), threads=1)
        before = score(_feeding(old), anchors, task.task_type, task.old_labels, task.old_labels)
    except (EdgePsloraError, ValueError) as problem:  # then the new one need only run
        note = f"the model that serves does not run on its own anchors: {problem}"
        return {"before": None, "after": None, "note": note}
    return {"before": before, "after": after, "note": ""}


def _anchors(task: Task) -> tuple[Anchors | None, str]:
    """Those of the serving generation, or why there are none to judge by."""
    if task.anchors is None or task.old is None:
        return None, "the generation that serves has no anchors"
    try:
        anchors = read_anchors(Path(task.anchors), task.source)
    except WorkspaceError as problem:
        return None, str(problem)
    if not anchors.usable:
        return None, "its anchors are recordings, or of a kind that needs more than the model file"
    return anchors, ""


def _feeding(runner: OnnxRunner) -> Any:
    """Run a batch of all that the anchors hold; a file may have no use for some of it."""

    def run(inputs: Mapping[str, Array]) -> Array:
        return runner.run({n: a for n, a in inputs.items() if n in runner.input_types})

    return run


def _try(runner: OnnxRunner, task: Task) -> None:
    """It runs, and gives finite outputs of the labels' width, for some size of its free axes."""
    problem: EdgePsloraError | None = None
    for size in _SIZES:
        inputs = {
            value.name: _example(value.name, value.shape, runner.input_types[value.name], size)
            for value in runner.session.get_inputs()
        }
        try:
            outputs = runner.run(inputs)
        except EdgePsloraError as refused:
            problem = refused
            continue
        check_outputs(outputs, _SAMPLES, task.task_type, task.new_labels)
        return
    if problem is not None:
        raise problem


def _example(name: str, shape: list[Any], dtype: np.dtype[Any], size: int) -> Array:
    """Two samples: values from 0 to 1, the first of every vocabulary, and nothing masked."""
    sizes = [axis if isinstance(axis, int) and axis > 0 else size for axis in shape]
    sizes[:1] = [_SAMPLES] if not isinstance(shape[0], int) else [shape[0]]
    if dtype.kind == "f":
        return np.linspace(0, 1, int(np.prod(sizes)), dtype=np.float32).reshape(sizes).astype(dtype)
    return np.ones(sizes, dtype) if "mask" in name else np.zeros(sizes, dtype)


def _limit(task: Task) -> int:
    """Address space and time; onnxruntime is imported already, and needs its own.

    Returns the bytes for the model: those of the task, or fewer where this process was limited before.
    """
    used, memory = 0, task.memory
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        used = pages * resource.getpagesize()
    if used:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard != resource.RLIM_INFINITY:
            memory = max(0, min(memory, hard - used))
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_CPU, (task.seconds, task.seconds + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    return memory


if __name__ == "__main__":
    main()
