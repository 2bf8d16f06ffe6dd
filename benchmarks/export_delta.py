"""How small a delta is, and what its replay costs: a process without torch, beside a copy of the model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.places import ROOT
from benchmarks.table import Row, median_row, row
from edge_pslora.errors import EdgePsloraError, UsageError
from edge_pslora.exporters.export import export_generation
from edge_pslora.exporters.export_options import ExportOptions
from edge_pslora.workspace import durable, layout
from edge_pslora.workspace.workspace import Workspace

TARGET = 1 / 600  # of model.safetensors, MiniLM q/v, r = 8
# the command, then the peak of its process: VmHWM counts from the start of the program
_CHILD = """
import sys
for name in ("torch", "transformers"):
    sys.modules[name] = None
from benchmarks.core_merge_child import peak_bytes
from edge_pslora.cli.main import main
code = main(sys.argv[1:])
print(peak_bytes() or 0)
sys.exit(code)
"""


def delta_rows(workspace: Path, temporary: Path, repeats: int) -> list[Row]:
    """Sizes of the serving generation's delta, then seconds and peaks, interleaved; one round warms up.

    Args:
        workspace: two generations at least.
        temporary: a folder on the file system in question.

    Raises:
        UsageError: only one generation. EdgePsloraError: a replay failed, or gave other bytes.
    """
    opened = Workspace.open(workspace)
    new = opened.published()
    if new.manifest.parent is None:
        raise UsageError("benchmark", expected="two generations", found="one", remedy="learn more")
    old = opened.generation(new.manifest.parent)
    folder = temporary / "bench-delta"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    made = export_generation(workspace, folder / "delta", ExportOptions("delta"))
    size, whole = made.facts["delta_bytes"], made.facts["model_bytes"]
    out, deployed = folder / "out.safetensors", folder / "deployed.onnx"
    files = ["--base", str(opened.base), "--parent", str(old.path), "--out", str(out)]
    command = ["replay", str(folder / "delta"), *files, "--json"]
    seconds: dict[str, list[float]] = {"copy": [], "replay": [], "replay --onnx": []}
    peaks: dict[str, list[float]] = {"replay": [], "replay --onnx": []}
    for _ in range(repeats + 1):
        start = time.perf_counter()
        durable.copy_file(new.path / layout.MODEL, folder / "copy")
        seconds["copy"].append(time.perf_counter() - start)
        for name in peaks:
            more: list[str] = []
            if name == "replay --onnx":
                if not made.facts["onnx"]:
                    continue
                durable.copy_file(old.path / layout.ONNX, deployed)
                more = ["--onnx", str(deployed)]
            wall, peak = _run([*command, *more])
            seconds[name].append(wall)
            peaks[name].append(peak / 2**20)
            _require_same(out, new.path / layout.MODEL)
            if more:
                _require_same(deployed, new.path / layout.ONNX)
    shutil.rmtree(folder)
    form = made.facts["factors"]
    rows = [row(f"delta ({form}) / model.safetensors", [size / whole], "ratio", "lower", TARGET)]
    rows.append(row(f"delta ({form})", [float(size)], "bytes", "lower"))
    for name, values in seconds.items():
        if values:
            rows.append(median_row(f"{name}: wall time", values[1:], "s", "lower"))
    for name, found in peaks.items():
        if found:
            rows.append(median_row(f"{name}: peak memory", found[1:], "MiB", "lower"))
    ratios = [a / b for a, b in zip(seconds["replay"][1:], seconds["copy"][1:], strict=True)]
    rows.append(
        median_row("replay, its process included / a durable copy", ratios, "ratio", "lower")
    )
    return rows


def _run(arguments: list[str]) -> tuple[float, int]:
    """Seconds and peak bytes of one process of the command."""
    environ = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *arguments],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    lines = done.stdout.splitlines()
    if done.returncode or len(lines) != 2 or "sha256" not in json.loads(lines[0]):
        raise EdgePsloraError(
            "replay",
            expected="exit code 0",
            found=f"{done.returncode}: {(done.stdout + done.stderr)[-200:]}",
            remedy="run the same command by hand",
        )
    return seconds, int(lines[1])


def _require_same(found: Path, wanted: Path) -> None:
    if found.read_bytes() != wanted.read_bytes():
        raise EdgePsloraError(
            str(found),
            expected=f"the bytes of {wanted}",
            found="others",
            remedy="this is a defect: report it",
        )
