"""A method over a stream: one session a task, then the score on every task."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from edge_pslora.compare.machine import machine, now, versions
from edge_pslora.compare.method import Learner, Method, Setup
from edge_pslora.compare.results import Matrix, Result, digest_of
from edge_pslora.compare.stream import Stream, Task
from edge_pslora.config import AdaptConfig
from edge_pslora.core.metrics import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_accuracy,
)
from edge_pslora.errors import UsageError
from edge_pslora.training.session import SessionData

ScoredPart = Literal["test", "valid"]


def run(
    method: Method,
    stream: Stream,
    config: AdaptConfig,
    seed: int,
    *,
    part: ScoredPart = "test",
    facts: Mapping[str, Any] | None = None,
    commit: str = "",
    on_session: Callable[[str, tuple[float, ...]], None] = lambda name, row: None,
) -> Result:
    """Trains session after session and scores on all tasks after each.

    config: the budget, the same for every method. seed: of adapters and of the order of samples. facts:
    what else the figures depend on (how the stream was cut). on_session: told each session's name and row.

    Raises:
        UsageError: the stream has no validation part, or the method is not for its kind of task.
    """
    config = replace(config, train=replace(config.train, seed=seed))
    learner = method.start(Setup(stream.new_model(), stream.task_type, config))
    sessions = [(task.name, task.train) for task in stream.tasks]
    if method.joint:
        sessions = [("joint", stream.joint)]
    untrained = _row(learner, stream, part)
    matrix: list[tuple[float, ...]] = []
    seconds = 0.0
    for name, data in sessions:
        start = time.perf_counter()
        learner.learn(data)
        seconds += time.perf_counter() - start
        matrix.append(_row(learner, stream, part))
        on_session(name, matrix[-1])
    settings = {**configuration(config), **(facts or {})}
    return Result(
        stream=stream.name,
        setting=stream.setting,
        order=stream.order,
        tasks=tuple(task.name for task in stream.tasks),
        method=method.key,
        seed=seed,
        part=part,
        config=settings,
        digest=digest_of(settings | {"part": part}),
        matrix=tuple(matrix),
        untrained=untrained,
        **figures(tuple(matrix), untrained),
        kept_bytes=learner.kept_bytes,
        trained=learner.trained,
        stores_samples=method.stores_samples,
        joint=method.joint,
        versions=versions(),
        machine=machine(),
        commit=commit,
        date=now(),
        seconds=seconds,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def configuration(config: AdaptConfig) -> dict[str, Any]:
    """The budget as JSON, without the seed."""
    settings = config.to_dict()
    del settings["train"]["seed"]
    settings["lora"]["target_modules"] = list(settings["lora"]["target_modules"])
    return settings


def figures(matrix: Matrix, untrained: tuple[float, ...]) -> dict[str, float | None]:
    """The metrics of METHOD.md; None where undefined: one task, or joint training."""
    sessions, tasks = len(matrix), len(matrix[0])
    names = ("learning", "backward", "forward", "forgetting")
    if sessions != tasks:  # joint: nothing was learned before anything else
        return {"average": sum(matrix[-1]) / tasks, **dict.fromkeys(names)}
    several = tasks > 1
    return {
        "average": average_accuracy(matrix),
        "learning": learning_accuracy(matrix),
        "backward": backward_transfer(matrix) if several else None,
        "forward": forward_transfer(matrix, untrained) if several else None,
        "forgetting": forgetting(matrix) if several else None,
    }


def _row(learner: Learner, stream: Stream, part: ScoredPart) -> tuple[float, ...]:
    known = stream.setting == "task-incremental"
    return tuple(
        learner.score(_held(task, part), task.labels if known else None) for task in stream.tasks
    )


def _held(task: Task, part: ScoredPart) -> SessionData:
    data = task.test if part == "test" else task.valid
    if data is None:
        raise UsageError(
            task.name,
            expected="a validation part",
            found="none",
            remedy="score on the test part",
        )
    return data
