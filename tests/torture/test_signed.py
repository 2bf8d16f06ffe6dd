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


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """By the fault that was planted, "" for none."""
    folder = tmp_path_factory.mktemp("signed")
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture.signed_quick", str(folder)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    return found


def test_nothing_forged_or_damaged_is_taken(rows):
    assert len(rows[""]) == 9
    assert [row for row in rows[""] if not row["met"]] == []


@pytest.mark.parametrize("fault", CAUGHT_BY)
def test_a_fault_in_the_checks_is_caught(rows, fault):
    assert rows[fault]
    assert all(row["bad"] > 0 for row in rows[fault] if "equal" not in row["what"])
    assert not all(row["met"] for row in rows[fault])
