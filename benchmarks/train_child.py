"""One way of training in a process of its own, which prints what it took: run by benchmarks.train_runs.

python -m benchmarks.train_child JOB, JOB being the JSON of `Job`.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.core_merge_child import peak_bytes

# how far a run goes: to the first step, to the trained and merged model, or to its test score
FIRST_STEP, SESSION, WHOLE = "first step", "session", "whole"
PEFT, PEFT_BF16 = "peft", "peft bf16"


@dataclass(frozen=True)
class Job:
    """way: FIRST_STEP, SESSION or WHOLE of `adapt`, or a peer's loop, PEFT or PEFT_BF16.

    subject: fields of train_subjects.Subject. train, engine, budget: fields of those parts of
    AdaptConfig. started: time.monotonic() of the parent, just before this process was made.
    device: torch's name of what trains.
    """

    way: str
    subject: Mapping[str, Any]
    workspace: str
    threads: int
    train: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)
    budget: Mapping[str, Any] = field(default_factory=dict)
    started: float = 0.0
    device: str = "cpu"


@dataclass
class Taken:
    """What came of a job; None where it does not apply.

    wall, cpu: seconds of the training loop; session_*: of all that makes the trained model, from the
    encoded samples on; first_step_*: from the start of the process to the end of the first step.
    peak: most bytes resident above what the imports left; peak_rss: most bytes resident at all.
    device_peak: most bytes that torch held on the device; None on the CPU.
    layers: adapted. exit_code: of the error that ended it, 0: none.
    """

    samples: int = 0
    layers: int | None = None
    wall: float | None = None
    cpu: float | None = None
    session_wall: float | None = None
    session_cpu: float | None = None
    first_step_wall: float | None = None
    first_step_cpu: float | None = None
    peak: int | None = None
    peak_rss: int | None = None
    device_peak: int | None = None
    score: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    exit_code: int = 0
    message: str = ""


class Enough(BaseException):
    """The run has come as far as was asked for; nothing catches it on the way."""


def forget_peak() -> int:
    """Starts the peak of resident memory anew; returns what is resident now, in bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes() or 0


class Recorder:
    """A Progress that notes when stages begin and end, and ends the run where it is to end."""

    def __init__(self, job: Job, taken: Taken) -> None:
        self.job, self.taken = job, taken
        self.stage, self.began = "", (0.0, 0.0)
        self.encoded: tuple[float, float] | None = None

    def start(self, stage: str, total: int | None) -> None:
        if stage == "exporting" and self.encoded is not None:
            wall, cpu = _since(self.encoded)
            self.taken.session_wall, self.taken.session_cpu = wall, cpu
            if self.job.way == SESSION:
                raise Enough
        if stage == "training" and total is not None:
            self.taken.samples = total // self.job.train.get("epochs", 1)
        self.stage, self.began = stage, _now()

    def advance(self, n: int, note: str = "") -> None:
        if self.stage == "training" and n > 0 and self.taken.first_step_wall is None:
            self.taken.first_step_wall = time.monotonic() - self.job.started
            self.taken.first_step_cpu = time.process_time()
            if self.job.way == FIRST_STEP:
                raise Enough

    def finish(self) -> None:
        wall, cpu = _since(self.began)
        if self.stage == "encoding":
            self.encoded = _now()
        if self.stage == "training":
            self.taken.wall, self.taken.cpu = wall, cpu
        self.taken.seconds[f"{self.stage}, cpu"] = round(cpu, 3)

    def say(self, line: str) -> None:
        if found := re.search(r" on (\d+) layers", line):
            self.taken.layers = int(found[1])


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(then: tuple[float, float]) -> tuple[float, float]:
    return time.perf_counter() - then[0], time.process_time() - then[1]


def run_ours(job: Job) -> Taken:
    """`adapt` of a first session in a new workspace, as the command calls it."""
    from edge_pslora.cli.waiting import wait_asleep

    wait_asleep(os.environ)
    from edge_pslora.config import AdaptConfig, BudgetConfig, EngineConfig, GateConfig, TrainConfig
    from edge_pslora.errors import EdgePsloraError
    from edge_pslora.pipeline import adapt

    if job.way != FIRST_STEP:  # which has its imports measured
        _import_model_code(job)
    subject, taken = job.subject, Taken()
    config = AdaptConfig(
        train=TrainConfig(**job.train),
        engine=EngineConfig(**job.engine, device=job.device),
        budget=BudgetConfig(**job.budget),
        gate=GateConfig(force=True),  # what is measured is not what it learned
    )
    weights = None if subject["weights"] is None else Path(subject["weights"])
    before = forget_peak()
    try:
        result = adapt(
            subject["data"],
            model=subject["model"],
            weights=weights,
            workspace=job.workspace,
            config=config,
            progress=Recorder(job, taken),
        )
    except Enough:
        pass
    except EdgePsloraError as error:
        taken.exit_code, taken.message = error.exit_code, str(error)
    else:
        taken.plan = dict(result.metrics.get("plan") or {})
    taken.device_peak = _device_peak(job)
    taken.peak_rss = peak_bytes()
    taken.peak = (taken.peak_rss or 0) - before
    if job.way == WHOLE and taken.exit_code == 0:
        from edge_pslora.evaluation import evaluate

        taken.score = evaluate(job.workspace, subject["data"]).accuracy
    return taken


def run_peer(job: Job) -> Taken:
    """The loop of a notebook, on the same samples."""
    from benchmarks import train_peft

    _import_model_code(job)
    before = forget_peak()
    subject, settings = job.subject, train_peft.Settings(**job.train, device=job.device)
    peer = train_peft.open_peer(subject, settings)
    begun = _now()
    train_peft.train(peer, settings, bf16=job.way == PEFT_BF16)
    float(peer.head.weight.detach().sum())  # a GPU's work is done when its results are there
    wall, cpu = _since(begun)
    peak = peak_bytes() or 0
    return Taken(
        peer.samples,
        peer.layers,
        *(wall, cpu, wall, cpu),
        peak=peak - before,
        peak_rss=peak,
        device_peak=_device_peak(job),
    )


def _device_peak(job: Job) -> int | None:
    import torch

    from edge_pslora.training.placing import peak_bytes as device_bytes

    return device_bytes(torch.device(job.device))


def _import_model_code(job: Job) -> None:
    """The interpreter with its imports done: what memory is counted above."""
    if job.subject["modality"] == "text":
        from transformers.models.bert import modeling_bert  # noqa: F401


def main(arguments: list[str]) -> None:
    job = Job(**json.loads(arguments[0]))
    sys.path[:0] = job.subject["imports"]
    import torch

    torch.set_num_threads(job.threads)
    torch.zeros(1, device=job.device)  # a device's start is nobody's
    taken = run_peer(job) if job.way in (PEFT, PEFT_BF16) else run_ours(job)
    print(json.dumps(asdict(taken)))


if __name__ == "__main__":
    main(sys.argv[1:])
