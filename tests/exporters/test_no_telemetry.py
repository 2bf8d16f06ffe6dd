"""onnxruntime 1.32 keeps a store of reports in the home folder and sends them, unless it is told not to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOADS = "import {module}; import onnxruntime; onnxruntime.SessionOptions()"


def _files_left(tmp_path: Path, module: str) -> list[str]:
    """What a process that loads onnxruntime leaves in its home and temporary folder."""
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    homes = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_DATA_HOME"), str(tmp_path))
    code = LOADS.format(module=module)
    subprocess.run([sys.executable, "-c", code], env=environment | homes, check=True, timeout=60)
    return sorted(path.name for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize("module", ["edge_pslora", "edge_pslora.exporters.run"])
def test_onnxruntime_reports_nothing(module, tmp_path):
    assert _files_left(tmp_path, module) == []
