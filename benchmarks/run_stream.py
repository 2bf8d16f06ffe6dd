"""A method over a stream, in memory: one session a task, then the accuracy on every task."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from benchmarks.methods import Method
from edge_pslora.compare.stream import Stream
from edge_pslora.core.metrics import (
    average_accuracy,
    backward_transfer,
    forgetting,
    learning_accuracy,
)
from edge_pslora.errors import UsageError
from edge_pslora.models.types import LoadedModel
from edge_pslora.training.classifier import with_head
from edge_pslora.training.features import run_batches
from edge_pslora.training.head import Head
from edge_pslora.training.memory import Memory, first_memory
from edge_pslora.training.session import SessionData, SessionResult, run_session
from edge_pslora.training.targets import find_targets

EVAL_BATCH = 64


@dataclass(frozen=True)
class StreamRun:
    """matrix[i][j]: accuracy on task j after session i; joint training has one session.

    seconds: of the sessions alone, without loading and measuring. learning, backward, forgetting:
    None where undefined (METHOD.md, "Metrics").
    """

    method: str
    seed: int
    matrix: tuple[tuple[float, ...], ...]
    average: float
    learning: float | None
    backward: float | None
    forgetting: float | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_stream(
    stream: Stream,
    method: Method,
    seed: int,
    on_session: Callable[[str, tuple[float, ...]], None] = lambda name, row: None,
    remember: Callable[[SessionResult], Memory] = lambda result: result.memory,
) -> StreamRun:
    """Trains session after session and measures on all tasks after each.

    seed: of adapters and of the order of samples. on_session: told the session's name and its row.

    Raises:
        UsageError: targets that are values, which have no accuracy.
    """
    model = stream.new_model()
    config = replace(method.config, train=replace(method.config.train, seed=seed))
    base = {n: p.detach().clone() for n, p in model.backbone.model.named_parameters()}
    sessions = [(task.name, task.train) for task in stream.tasks]
    if method.joint:
        sessions = [("joint", stream.joint)]
    targets = find_targets(model.backbone.model, config.lora.target_modules)
    if sessions[0][1].targets.dtype.kind == "f":
        raise UsageError(
            stream.name, expected="labels", found="values", remedy="use another benchmark"
        )
    memory = first_memory(model, targets, config, "classification")
    matrix: list[tuple[float, ...]] = []
    seconds = 0.0
    for name, data in sessions:
        start = time.perf_counter()
        memory = remember(run_session(model, lambda weight: base[weight], memory, data, config))
        seconds += time.perf_counter() - start
        matrix.append(tuple(accuracy(model, memory.head, task.test) for task in stream.tasks))
        on_session(name, matrix[-1])
    return summarised(method.name, seed, tuple(matrix), seconds)


def accuracy(model: LoadedModel, head: Head, data: SessionData) -> float:
    """Share of samples whose label comes first among all that the head knows."""
    classifier = with_head(model.backbone, head).eval()
    best = run_batches(classifier, data.inputs, EVAL_BATCH).argmax(dim=1).numpy()
    return float(np.mean(np.array(head.labels, dtype=np.str_)[best] == data.targets))


def summarised(
    name: str, seed: int, matrix: tuple[tuple[float, ...], ...], seconds: float
) -> StreamRun:
    sessions, tasks = len(matrix), len(matrix[0])
    if sessions != tasks:  # joint: nothing was learned before anything else
        return StreamRun(name, seed, matrix, sum(matrix[-1]) / tasks, None, None, None, seconds)
    several = tasks > 1
    return StreamRun(
        name,
        seed,
        matrix,
        average_accuracy(matrix),
        learning_accuracy(matrix),
        backward_transfer(matrix) if several else None,
        forgetting(matrix) if several else None,
        seconds,
    )
