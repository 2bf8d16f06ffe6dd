"""Lines of a comparison that was never run, and what its page is made from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from edge_pslora.compare.results import Result
from edge_pslora.compare.summary import StreamFigures, summarised
from edge_pslora.compare.tables import Sources
from edge_pslora.core import metrics as m

NAMES = {
    "sequential": "sequential LoRA",
    "frozen": "frozen features + analytic head",
    "pslora": "PS-LoRA (default)",
    "pslora-loss": "default, loss only",
    "paper": "PS-LoRA as published, linear head",
    "ewc": "EWC <script>alert(1)</script>",
    "der": "DER++",
    "joint": "joint training, linear head",
}
# how much of what was learned a method keeps, and what it learns
KEEPS = {"sequential": 0.0, "frozen": 0.8, "pslora": 0.9, "pslora-loss": 0.5, "paper": 0.6}
KEEPS |= {"ewc": 0.97, "der": 0.95}
STREAMS = (("pacs", "domain-incremental", 4), ("heart <b>", "class-incremental", 3))
SOURCES = Sources(
    *(80, "2026-11-26", ("a CPU, 2 cores",), ("torch 2",), ("c0ffee",), "make bench-suite"),
)


def result(stream: str, setting: str, tasks: int, method: str, seed: int, **other: Any) -> Result:
    """A line whose figures follow from its matrix as they do in the suite."""
    rng = random.Random(f"{stream} {method} {seed}")
    seeds = random.Random(f"{stream} {seed}").gauss(0, 0.01)
    joint = method == "joint"
    lost = 0.4 * (1 - KEEPS.get(method, 1.0))
    matrix = tuple(
        tuple(
            0.8 + seeds + rng.gauss(0, 0.004) - (lost * (i - j) / tasks if i >= j else 0.5)
            for j in range(tasks)
        )
        for i in range(tasks)
    )
    if joint:
        matrix = (tuple(0.8 + seeds + rng.gauss(0, 0.004) for _ in range(tasks)),)
    untrained = (0.1,) * tasks
    facts: dict[str, Any] = {
        "stream": stream,
        "setting": setting,
        "order": 0,
        "tasks": tuple(f"task <i>{j}</i>" for j in range(tasks)),
        "method": method,
        "seed": seed,
        "part": "test",
        "config": {},
        "digest": "d",
        "matrix": matrix,
        "untrained": untrained,
        "average": sum(matrix[-1]) / tasks,
        "learning": None if joint else m.learning_accuracy(matrix),
        "backward": None if joint else m.backward_transfer(matrix),
        "forward": None if joint else m.forward_transfer(matrix, untrained),
        "forgetting": None if joint else m.forgetting(matrix),
        "kept_bytes": 1000,
        "trained": 5000,
        "stores_samples": method == "der",
        "joint": joint,
        "versions": {"torch": "2"},
        "machine": {"cpu": "a CPU", "cores": 2},
        "commit": "c0ffee",
        "date": "2026-11-26T01:00:00+00:00",
        "seconds": 1.0 + seed,
        "peak_bytes": 10**9 + seed,
    }
    return Result(**{**facts, **other})


def lines(seeds: int = 5) -> list[Result]:
    return [
        result(stream, setting, tasks, method, seed)
        for stream, setting, tasks in STREAMS
        for method in NAMES
        for seed in range(seeds)
    ]


def streams(results: Sequence[Result] | None = None) -> tuple[StreamFigures, ...]:
    return summarised(lines() if results is None else results, NAMES)


def page_arguments() -> tuple[tuple[StreamFigures, ...], Sources, list[str]]:
    return streams(), SOURCES, ["pslora-loss", "paper"]
