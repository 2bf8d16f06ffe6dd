"""kills, readers and endurance in their quick form, and with each of the faults that they must find."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.torture import endurance, kills, readers

SECTIONS = {"kills": kills, "readers": readers, "endurance": endurance}
FAULTS = [(name, fault) for name, section in SECTIONS.items() for fault in section.PLANTS]
# in what row the fault shows, where several could
SHOWN = {
    ("kills", "pointer before data"): {"promote: killed at each call"},
    ("kills", "resume without moments"): {"killed in training and resumed: other bytes"},
    ("readers", "a reader that locks"): {"reads that took a lock or waited"},
    ("endurance", "leaks"): {
        "adapt in a row: RSS growth, %",
        "adapt in a row: descriptors left open",
        "adapt in a row: temporary files left",
        "adapt in a row: an adaptation's time, growth in times",
    },
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Section -> fault ("": none) -> rows, all from one warm process."""
    rows: Path = tmp_path_factory.mktemp("torture") / "rows.json"
    command = [sys.executable, "-m", "tests.torture", *SECTIONS, "--quick", "--with-plants"]
    done = subprocess.run(
        [*command, "--rows", str(rows)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, dict[str, list[dict[str, Any]]]] = json.loads(rows.read_text())
    if result["kills"][""][0]["note"].startswith("skipped"):
        pytest.skip("ptrace is not permitted here: nothing was killed")
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", SECTIONS)
def test_nothing_that_must_never_happen_does(found, name):
    rows = found[name][""]
    assert [(row["what"], row["note"]) for row in rows if not row["met"]] == []
    assert sum(row["cases"] for row in rows) > 20


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_a_planted_fault_is_found(found, name, fault):
    missed = {row["what"] for row in found[name][fault] if not row["met"]}
    assert missed >= SHOWN.get((name, fault), set())
    assert missed
    # found for what it is, and not because the part died of it
    assert not any("ended by itself" in what for what in missed)
