"""A power loss at any call leaves the old state or the new one; each planted fault is caught."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.tracer import permitted

pytestmark = pytest.mark.skipif(not permitted(), reason="tracing a child is not permitted here")


@pytest.fixture(scope="module")
def found() -> dict[str, dict]:
    """By the fault's name; "" for the code as it is."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture.planted", "power"],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, dict] = json.loads(done.stdout)
    return result


def test_the_code_as_it_is(found):
    assert found[""] == {"met": True, "notes": []}


@pytest.mark.parametrize(
    "fault",
    [
        "no fsync of files",
        "no fsync of folders",
        "pointer before data",
        "written in place",
        "parents not synced",
    ],
)
def test_a_planted_fault_is_caught(found, fault):
    assert found[fault]["met"] is False, "the section does not see it"
    print("\n".join(found[fault]["notes"]))
