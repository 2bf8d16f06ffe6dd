"""Loads and runs an ONNX file from outside once, in a process of its own with limits of memory and time.

What `onnx_safety` cannot see in the file shows here: a shape that is computed, an operator that never
ends, a fault of onnxruntime. It costs the start of a Python with onnxruntime, some tenths of a second.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from edge_pslora.errors import InputError, ModelError
from edge_pslora.exporters import onnx_trial_child
from edge_pslora.exporters.onnx_safety import check_onnx

MEMORY = 1 << 30  # bytes beside three times the model's own
SECONDS = 60.0


def try_onnx(
    path: Path,
    *,
    error: type[InputError] = ModelError,
    memory: int = MEMORY,
    seconds: float = SECONDS,
    run: bool = True,
) -> None:
    """check_onnx, then onnxruntime's own word for it: the file loads and, unless not `run`, computes
    something finite from zeros (free sizes are 1).

    Raises:
        error: as check_onnx; or it does not load, or takes more memory or time than that.
    """
    check_onnx(path, error=error)
    size = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*") if file.is_file())
    limits = json.dumps({"memory": memory + 3 * size, "seconds": seconds, "run": run})
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", onnx_trial_child.__file__, str(path.absolute()), limits]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=seconds + 30, check=False, env=environment
        )
    except subprocess.TimeoutExpired as problem:
        raise _refused(path, f"one that was not done after {seconds:g} s", error) from problem
    if done.returncode == 0:
        return
    said = done.stdout.decode("utf-8", "replace") if done.returncode == 1 else ""
    raise _refused(path, said or f"one that ends its process (code {done.returncode})", error)


def _refused(path: Path, found: str, error: type[InputError]) -> InputError:
    return error(
        str(path),
        expected="an ONNX file that onnxruntime can load and run within its limits",
        found=found,
        remedy="do not use this file; get it again from whoever made it",
    )
