"""A method over a stream: one session a task, then the score on every task."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict

from edge_pslora.compare.machine import machine, now, versions
from edge_pslora.compare.method import Learner, Method, Setup
from edge_pslora.compare.results import Matrix, Result, digest_of
from edge_pslora.compare.stream import Setting, Stream, Task
from edge_pslora.config import AdaptConfig
from edge_pslora.core.metrics import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_accuracy,
)
from edge_pslora.errors import UsageError
from edge_pslora.tasks import TASKS
from edge_pslora.training.rate import with_rate
from edge_pslora.training.session import SessionData
from edge_pslora.training.targets import adapted_targets

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
) -> tuple[Result, ...]:
    """Trains session after session and scores on all tasks after each: a result for each setting.

    config: the budget, the same for every method. seed: of adapters and of the order of samples. facts:
    what else the figures depend on (how the stream was cut). on_session: told each session's name and
    its row in the first setting.

    Raises:
        UsageError: the stream has no validation part, or the method is not for its kind of task.
    """
    config = replace(config, train=replace(config.train, seed=seed))
    forget_peak()
    model = stream.new_model()
    config = with_rate(
        config, TASKS[stream.task_type], adapted_targets(model.backbone.model, config)
    )
    learner = method.start(Setup(model, stream.task_type, config))
    sessions = [(task.name, task.train) for task in stream.tasks]
    if method.joint:
        sessions = [("joint", stream.joint)]
    settings = (stream.setting, *stream.also)
    untrained = _rows(learner, stream, settings, part)
    matrices: list[list[tuple[float, ...]]] = [[] for _ in settings]
    seconds = 0.0
    for name, data in sessions:
        start = time.process_time()
        learner.learn(data)
        seconds += time.process_time() - start
        for matrix, row in zip(matrices, _rows(learner, stream, settings, part), strict=True):
            matrix.append(row)
        on_session(name, matrices[0][-1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    made = {**configuration(config), **(facts or {})}
    return tuple(
        Result(
            stream=stream.name,
            setting=setting,
            order=stream.order,
            tasks=tuple(task.name for task in stream.tasks),
            method=method.key,
            seed=seed,
            part=part,
            config=made,
            digest=run_digest(config, facts or {}, part),
            matrix=tuple(matrix),
            untrained=before,
            **figures(tuple(matrix), before),
            kept_bytes=learner.kept_bytes,
            trained=learner.trained,
            stores_samples=method.stores_samples,
            joint=method.joint,
            versions=versions(),
            machine=machine(),
            commit=commit,
            date=now(),
            seconds=seconds,
            peak_bytes=peak,
        )
        for setting, matrix, before in zip(settings, matrices, untrained, strict=True)
    )


def forget_peak() -> None:
    """The process' peak of memory is counted from here on, where the system can do that (Linux)."""
    with suppress(OSError):  # elsewhere it stays the peak of all that the process did
        Path("/proc/self/clear_refs").write_text("5")


def run_digest(config: AdaptConfig, facts: Mapping[str, Any], part: ScoredPart) -> str:
    """Of all that a result depends on besides stream, order, method and seed."""
    return digest_of({**configuration(config), **facts, "part": part})


def configuration(config: AdaptConfig) -> dict[str, Any]:
    """The budget as JSON, without the seed, without the device (methods are compared on the CPU), and
    without what only PS-LoRA has, its limit and the labels that compete: results of methods that lack
    these stay what they are."""
    settings = config.to_dict()
    del settings["train"]["seed"], settings["engine"]["device"], settings["stability"]["most_pull"]
    del settings["head"]["compete"]
    settings["train"]["learning_rate"] = config.train.rate
    settings["lora"]["target_modules"] = list(settings["lora"]["target_modules"])
    return settings


class Figures(TypedDict):
    average: float
    learning: float | None
    backward: float | None
    forward: float | None
    forgetting: float | None


def figures(matrix: Matrix, untrained: tuple[float, ...]) -> Figures:
    """The metrics of METHOD.md; None where undefined: one task, or joint training."""
    sessions, tasks = len(matrix), len(matrix[0])
    if sessions != tasks:  # joint: nothing was learned before anything else
        average = sum(matrix[-1]) / tasks
        return Figures(average=average, learning=None, backward=None, forward=None, forgetting=None)
    several = tasks > 1
    return Figures(
        average=average_accuracy(matrix),
        learning=learning_accuracy(matrix),
        backward=backward_transfer(matrix) if several else None,
        forward=forward_transfer(matrix, untrained) if several else None,
        forgetting=forgetting(matrix) if several else None,
    )


def _rows(
    learner: Learner, stream: Stream, settings: Sequence[Setting], part: ScoredPart
) -> list[tuple[float, ...]]:
    """For each setting the scores on every task."""
    columns = []
    for task in stream.tasks:
        among = [task.labels if setting == "task-incremental" else None for setting in settings]
        columns.append(learner.score(_held(task, part), among))
    return list(zip(*columns, strict=True))


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
