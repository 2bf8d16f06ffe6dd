"""The runs of `make bench-train`: every variant a process of its own, in turn, in an order drawn anew."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.places import ROOT
from benchmarks.train_child import FIRST_STEP, PEFT, PEFT_BF16, SESSION, WHOLE, Job, Taken
from benchmarks.train_subjects import Subject
from edge_pslora.errors import BudgetError, EdgePsloraError

# the run that every option is held against: whole batches in float32, nothing kept on disk
PLAIN_ENGINE = {"precision": "float32", "checkpointing": False, "prefix_cache": "off"}
HALF_ENGINE = {"adapt_depth": 0.5}
OURS, PLAIN, HALF = "ours", "ours plain", "ours half"

MOST_REFUSALS = 6  # reading, loading and planning may each ask for more

Say = Callable[[str], None]
Runs = dict[str, list[Taken]]


@dataclass(frozen=True)
class Variant:
    """A way of training; engine: fields of EngineConfig; what is left out is planned."""

    name: str
    way: str
    engine: Mapping[str, Any] = field(default_factory=dict)


TIMED = (
    Variant(OURS, SESSION),
    Variant(PLAIN, SESSION, PLAIN_ENGINE),
    Variant(HALF, SESSION, HALF_ENGINE),
    Variant(PEFT, PEFT),
    Variant(PEFT_BF16, PEFT_BF16),
)
SCORED = (Variant(OURS, WHOLE), Variant(PLAIN, WHOLE, PLAIN_ENGINE))
STARTED = (Variant(OURS, FIRST_STEP),)


@dataclass(frozen=True)
class Bench:
    """What all runs of one subject share. work: an empty folder for their workspaces. device: torch's
    name of what trains."""

    subject: Subject
    work: Path
    threads: int
    epochs: int
    device: str = "cpu"

    def run(
        self, variant: Variant, seed: int = 0, budget: Mapping[str, Any] | None = None
    ) -> Taken:
        """Raises TrainRunError: the process ended without an answer."""
        workspace = self.work / "workspace"
        job = Job(
            variant.way,
            asdict(self.subject),
            str(workspace),
            self.threads,
            train={"epochs": self.epochs, "seed": seed},
            engine={} if variant.way in (PEFT, PEFT_BF16) else variant.engine,
            budget=budget or {},
            device=self.device,
        )
        try:
            return _child(job)
        finally:
            shutil.rmtree(workspace, ignore_errors=True)


class TrainRunError(EdgePsloraError):
    """A process of the benchmark ended without an answer."""

    def __init__(self, job: Job, code: int, message: str) -> None:
        super().__init__(
            f"{job.way} on {job.subject['name']}",
            expected="a line of JSON",
            found=f"exit code {code}: {message}",
            remedy="run benchmarks.train_child by hand",
        )


def in_rounds(bench: Bench, variants: Sequence[Variant], rounds: int, say: Say) -> Runs:
    """One run of each variant in every round, so that a slow minute hits all; by name.

    Raises:
        TrainRunError: a run that ended with an error, which no variant here may.
    """
    order, runs = random.Random(0), {v.name: [] for v in variants}  # type: Runs
    for number in range(rounds):
        for variant in order.sample(variants, len(variants)):
            taken = bench.run(variant, seed=number)
            say(f"  round {number + 1}, {variant.name}: {_line(taken)}")
            if taken.exit_code:
                raise EdgePsloraError(
                    f"{variant.name} on {bench.subject.name}",
                    expected="a run to its end",
                    found=taken.message,
                    remedy="run it by hand",
                )
            runs[variant.name].append(taken)
    return runs


def at_budgets(bench: Bench, budgets: Sequence[int], say: Say) -> list[Taken]:
    """Whole runs with --ram-budget; one that is refused (exit code 6) counts like any other."""
    found = []
    for budget in budgets:
        taken = bench.run(Variant(OURS, WHOLE), budget={"ram_bytes": budget})
        over = (taken.peak_rss or 0) - budget
        say(f"  budget {budget >> 20} MiB: {over >> 20:+d} MiB, exit code {taken.exit_code}")
        found.append(taken)
    return found


def least_budget(bench: Bench, say: Say) -> int:
    """The bytes that a refused run says would do, followed until a run is not refused.

    Raises:
        EdgePsloraError: it is refused again and again, or ends otherwise.
    """
    budget = 1 << 20
    for _ in range(MOST_REFUSALS):
        taken = bench.run(Variant(OURS, WHOLE), budget={"ram_bytes": budget})
        say(f"  budget {budget >> 20} MiB: exit code {taken.exit_code}")
        if taken.exit_code == 0:
            return budget
        named = re.search(r"at least (\d+) bytes", taken.message)
        if taken.exit_code != BudgetError.exit_code or named is None:
            break
        budget = int(named[1])
    raise EdgePsloraError(
        f"--ram-budget on {bench.subject.name}",
        expected="a refusal that names the least that would do",
        found=taken.message,
        remedy="run it by hand",
    )


def _child(job: Job) -> Taken:
    threads = {"OMP_NUM_THREADS": str(job.threads), "MKL_NUM_THREADS": str(job.threads)}
    offline = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    job = replace(job, started=time.monotonic())  # one clock for all processes on Linux
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train_child", json.dumps(asdict(job))],
        cwd=ROOT,
        env={**os.environ, **threads, **offline},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise TrainRunError(job, done.returncode, done.stderr[-300:])
    return Taken(**json.loads(lines[-1]))


def _line(taken: Taken) -> str:
    parts = []
    if taken.session_wall is not None and taken.session_cpu is not None:
        parts.append(f"{taken.session_wall:.1f} s, {taken.session_cpu:.1f} CPU s")
    elif taken.first_step_wall is not None:
        parts.append(
            f"first step after {taken.first_step_wall:.1f} s, {taken.first_step_cpu:.1f} CPU s"
        )
    parts.append(f"{(taken.peak or 0) >> 20} MiB above the imports")
    return ", ".join(parts)
