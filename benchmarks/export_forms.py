"""Every form of export of one workspace: what is shipped, how long it takes to load and to run.

Loading: a new onnxruntime session (or reading all tensors) with the file in the page cache. Running:
one sample, in turn with torch eager.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.core_setup import threads_set_to
from benchmarks.export_subjects import Subject
from benchmarks.export_timing import in_turn, ratios
from benchmarks.streams.command import REFUSED, edge_pslora
from edge_pslora.exporters.adapter_file import open_adapter
from edge_pslora.exporters.run import OnnxRunner, open_onnx
from edge_pslora.pipeline.reopening import Reopened, reopen
from edge_pslora.workspace import layout
from edge_pslora.workspace.workspace import Workspace

RECORDS = frozenset({"export.json", "labels.json", layout.CARD})  # not what a device needs to run
TORCH = "torch eager"


@dataclass(frozen=True)
class Form:
    """name: of the row. arguments: of `edge-pslora export`. runs: whether it has a model.onnx."""

    name: str
    arguments: tuple[str, ...]
    runs: bool = True


FORMS = (
    Form("onnx", ("--format", "onnx")),
    Form("onnx, external data", ("--format", "onnx", "--external-data")),
    Form("onnx int8", ("--format", "onnx", "--quantize", "int8")),
    Form("onnx int8 static", ("--format", "onnx", "--quantize", "int8-static")),
    Form("ort-adapter", ("--format", "ort-adapter")),
    Form("safetensors", ("--format", "safetensors"), runs=False),
    Form("peft", ("--format", "peft"), runs=False),
    Form("delta", ("--format", "delta"), runs=False),
)


@dataclass(frozen=True)
class FormRun:
    """bytes: of all files but records and cards; updated: of what changes from one generation to the
    next, where that is less. seconds: of the whole command. load, latency: milliseconds, medians;
    relative: latency / torch eager, by round. refused: why the export was."""

    form: str
    bytes: int = 0
    seconds: float = 0.0
    load: float | None = None
    latency: float | None = None
    relative: list[float] = field(default_factory=list)
    refused: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def measure_forms(
    subject: Subject, out: Path, forms: Sequence[Form], rounds: int
) -> tuple[list[FormRun], Reopened]:
    """All forms of the serving generation, one thread."""
    sys.path[:0] = [str(path) for path in subject.imports]
    opened = Workspace.open(subject.workspace)
    again = reopen(opened, opened.published(None), subject.data)
    exported = {form.name: _export(subject, out, form) for form in forms}
    running = {f.name: exported[f.name] for f in forms if f.runs and not exported[f.name].refused}
    with threads_set_to(1):
        loads = in_turn({name: _loading(out / name) for name in running}, min(rounds, 9))
        calls = {name: _running(again, out / name) for name in running}
        taken = in_turn({TORCH: _eager(again), **calls}, rounds, warm_up=3)
    runs = [FormRun(TORCH, latency=_milliseconds(taken[TORCH]))]
    for name, run in exported.items():
        if name in running:
            run = FormRun(
                run.form,
                run.bytes,
                run.seconds,
                _milliseconds(loads[name]),
                _milliseconds(taken[name]),
                ratios(taken, name, TORCH),
                "",
                run.facts,
            )
        runs.append(run)
    return runs, again


def _export(subject: Subject, out: Path, form: Form) -> FormRun:
    folder = out / form.name
    arguments = ["export", str(subject.workspace), str(folder), *form.arguments]
    if "--quantize" in form.arguments and subject.data is not None:
        arguments += ["--data", str(subject.data)]
    start = time.perf_counter()
    facts = edge_pslora(arguments, subject.imports, (0, REFUSED))
    seconds = time.perf_counter() - start
    if "files" not in facts:
        return FormRun(form.name, refused=str(facts["message"]))
    files = [Path(file) for file in facts["files"] if Path(file).name not in RECORDS]
    return FormRun(form.name, sum(f.stat().st_size for f in files), seconds, facts=facts)


def _sample(again: Reopened) -> dict[str, torch.Tensor]:
    """The held-out sample of median length."""
    order = np.argsort(again.held.inputs.lengths(), kind="stable").astype(np.int64)
    return again.held.inputs.batch(order[len(order) // 2 :][:1])


def _eager(again: Reopened) -> Callable[[], object]:
    sample = _sample(again)

    def run() -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = again.classifier(**sample)
            return logits

    return run


def _opened(folder: Path) -> OnnxRunner:
    """The session of an export, with its newest adapter where it takes any."""
    runner = open_onnx(folder / layout.ONNX, threads=1)
    adapters = sorted(folder.glob("*.onnx_adapter"))
    return runner.using(open_adapter(adapters[-1])) if adapters else runner


def _loading(folder: Path) -> Callable[[], object]:
    return lambda: _opened(folder)


def _running(again: Reopened, folder: Path) -> Callable[[], npt.NDArray[Any]]:
    runner = _opened(folder)
    arrays = {name: tensor.numpy() for name, tensor in _sample(again).items()}
    return lambda: runner.run(arrays)


def _milliseconds(seconds: Sequence[float]) -> float:
    return 1000 * statistics.median(seconds)
