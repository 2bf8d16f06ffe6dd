"""`edge-pslora merge` against plain loops on the same files: whole processes, time and peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.core_merge_child import NUMPY, OURS, PEFT, SYNCED, TORCH
from benchmarks.core_merge_inputs import largest_tensor, synthetic_model, write_adapter
from benchmarks.core_setup import Part, Setup, Sizes
from benchmarks.places import ROOT
from benchmarks.table import Row, median_row
from edge_pslora.errors import EdgePsloraError

NAMES = {
    NUMPY: "safetensors loop with numpy",
    SYNCED: "same loop, file synced as ours is",
    TORCH: "safetensors loop with torch",
    PEFT: "PEFT merge_and_unload",
}
FILE_REPEATS = 4  # at most; a process of PEFT takes seconds
MANY_ADAPTERS = 4


@dataclass(frozen=True)
class Case:
    """One base file with its adapters, merged in each of these ways, `ours` among them."""

    name: str
    base: Path
    adapters: tuple[Path, ...]
    ways: tuple[str, ...]


@dataclass(frozen=True)
class ProcessFigure:
    """One entry per repeat. seconds: from start to exit. peak_bytes: of the whole process, None
    where the system does not tell."""

    seconds: tuple[float, ...]
    peak_bytes: tuple[int | None, ...]


def merge_file_part(setup: Setup, sizes: Sizes) -> Part:
    """Rows on the real model and on synthetic ones; everything is written to a temporary folder."""
    rows: list[Row] = []
    imports = imports_bytes((OURS, *NAMES), sizes.threads)
    with tempfile.TemporaryDirectory(prefix="edge-pslora-bench-") as temporary:
        for case in make_cases(setup, sizes, Path(temporary)):
            figures = measure_case(case, min(FILE_REPEATS, sizes.repeats), sizes.threads)
            rows += case_rows(case, figures, imports)
    return Part(rows)


def make_cases(setup: Setup, sizes: Sizes, temporary: Path) -> list[Case]:
    """The model's file, a float32 and a bfloat16 file of synthetic layers, and many adapters."""
    base = setup.folder / "model.safetensors"
    own = write_adapter(temporary / "adapter", setup.shapes, sizes.rank, seed=1)
    cases = [Case(setup.name, base, (own,), (OURS, NUMPY, SYNCED, TORCH, PEFT))]
    for dtype in ("float32", "bfloat16"):
        path = temporary / f"{dtype}.safetensors"
        adapted = synthetic_model(path, dtype, sizes.file_bytes)
        adapters = tuple(
            write_adapter(temporary / f"{dtype}-{i}", adapted, sizes.rank, seed=i)
            for i in range(MANY_ADAPTERS)
        )
        label = f"{path.stat().st_size / 1e6:.0f} MB {dtype}"
        cases.append(Case(label, path, adapters[:1], (OURS, NUMPY, SYNCED, TORCH)))
        if dtype == "float32":
            cases.append(Case(f"{label}, {MANY_ADAPTERS} adapters", path, adapters, (OURS,)))
    return cases


def imports_bytes(ways: Iterable[str], threads: int) -> dict[str, int | None]:
    """The peak of a process that imports what a way of merging needs and ends."""
    return {way: run_child([way], threads)[1] for way in ways}


def measure_case(case: Case, repeats: int, threads: int) -> dict[str, ProcessFigure]:
    """All ways in turn, `repeats` times; what they read is in the system's cache from the start."""
    case.base.read_bytes()
    runs: dict[str, list[tuple[float, int | None]]] = {way: [] for way in case.ways}
    with tempfile.TemporaryDirectory(prefix="out-", dir=case.adapters[0].parent) as folder:
        out = Path(folder) / "model.safetensors"
        for _ in range(repeats):
            for way in case.ways:
                runs[way].append(run_child([way, case.base, out, *case.adapters], threads))
                out.unlink()
                os.sync()  # what this one left to be written must not slow down the next
    return {
        way: ProcessFigure(tuple(s for s, _ in done), tuple(p for _, p in done))
        for way, done in runs.items()
    }


def run_child(arguments: Sequence[str | Path], threads: int) -> tuple[float, int | None]:
    """Seconds and peak bytes of one process of core_merge_child.

    Raises:
        EdgePsloraError: it failed.
    """
    command = [sys.executable, "-m", "benchmarks.core_merge_child", *map(str, arguments)]
    environ = os.environ | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise EdgePsloraError(
            f"merge by {arguments[0]}",
            expected="exit code 0",
            found=f"{done.returncode}: {done.stderr[-200:]}",
            remedy="run the same merge by hand",
        )
    peak: int | None = json.loads(done.stdout.splitlines()[-1])["peak_bytes"]
    return seconds, peak


def case_rows(
    case: Case, figures: Mapping[str, ProcessFigure], imports: Mapping[str, int | None]
) -> list[Row]:
    """Time of ours over each other way, and each way's peak memory over the largest tensor."""
    ours = figures[OURS]
    rows = [median_row(f"{case.name}: edge-pslora merge", ours.seconds, "s", "lower")]
    for way, figure in figures.items():
        if way != OURS:
            ratios = [a / b for a, b in zip(ours.seconds, figure.seconds, strict=True)]
            name = f"{case.name}: edge-pslora merge / {NAMES[way]}, time"
            rows.append(median_row(name, ratios, "ratio", "lower"))
    largest = largest_tensor(case.base)
    for way, figure in figures.items():
        before = imports[way]
        if way == SYNCED or before is None:
            continue
        beyond = [(peak - before) / largest for peak in figure.peak_bytes if peak is not None]
        name = f"{case.name}: peak memory / largest tensor, {NAMES.get(way, 'edge-pslora merge')}"
        target = 3.0 if way == OURS else None
        rows.append(median_row(name, beyond, "ratio", "lower", target))
    return rows
