"""Threads that wait asleep: set before torch is imported, and only where the user chose nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edge_pslora.cli.waiting import SPINS, wait_asleep

PROGRAM = """
import os, sys
from edge_pslora.cli.main import main
assert "torch" not in sys.modules
code = main(["--version"])
print(code, os.environ.get("GOMP_SPINCOUNT"))
"""


def test_it_is_set_where_nothing_was_chosen():
    environ = {"PATH": "/bin"}
    wait_asleep(environ)
    assert environ == {"PATH": "/bin", "GOMP_SPINCOUNT": SPINS}


@pytest.mark.parametrize(
    "chosen",
    [{"GOMP_SPINCOUNT": "infinite"}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": ""}],
)
def test_what_the_user_chose_stays(chosen: dict[str, str]):
    environ = dict(chosen)
    wait_asleep(environ)
    assert environ == chosen


def test_the_command_sets_it_before_torch_is_there():
    """libgomp reads it once, when it is loaded."""
    bare = {n: v for n, v in os.environ.items() if n not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=bare)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["0", SPINS]
