"""A power loss at any call leaves the old state or the new one; each planted fault is caught."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.power import PLANTS
from tests.torture.tracer import permitted


@pytest.mark.slow
@pytest.mark.skipif(not permitted(), reason="tracing a child is not permitted here")
def test_nothing_is_lost_and_each_planted_fault_is_caught_power() -> None:
    """One test: its parts share a process that takes longer to start than they take."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture.planted", "power"],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, object]] = json.loads(done.stdout)
    assert found.pop("") == {"met": True, "notes": []}
    assert found.keys() == PLANTS.keys()
    assert [fault for fault, rows in found.items() if rows["met"] is not False] == []
