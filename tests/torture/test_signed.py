"""The section `signed` in its quick form, and that it catches each fault planted in what it tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.torture.signed_quick import CAUGHT_BY


@pytest.mark.slow
def test_nothing_forged_is_taken_and_each_fault_in_the_checks_is_caught(tmp_path: Path) -> None:
    """One test: its parts share a process that takes longer to start than they take."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture.signed_quick", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    assert len(rows[""]) == 9
    assert [row for row in rows[""] if not row["met"]] == []
    for fault in CAUGHT_BY:
        assert rows[fault]
        assert all(row["bad"] > 0 for row in rows[fault] if "equal" not in row["what"])
        assert not all(row["met"] for row in rows[fault])
