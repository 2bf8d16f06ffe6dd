"""`apply` killed at calls that changes a file: old or new serves, and it goes on to one end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise

import pytest

from tests.device import apply_driver

STEP = 5  # the torture takes every call


def drive(*arguments: object) -> list[dict]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "tests.device.apply_driver", *map(str, arguments)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("case", ["first", "next", "sick"])
def test_killed_at_many_steps(case, made, scratch):
    bundle = made.one if case == "first" else made.two
    template = scratch / "nothing" if case == "first" else made.device.path
    end, *rows = drive(made.publisher.root, bundle, case, template, scratch, STEP)
    assert end.pop("code") == (3 if case == "sick" else 0)
    assert end["served"] == {"first": 1, "next": 2, "sick": 1}[case]
    calls = end.pop("calls")
    assert calls > 50
    assert len(rows) == len(range(1, calls + 1, STEP))
    served = [row.pop("middle")["served"] for row in rows]
    old = None if case == "first" else 1
    changes = [a for a, b in pairwise(served) if a != b]
    assert set(served) == {old, 2 if case != "first" else 1}
    assert served[0] == old
    assert len(changes) == (2 if case == "sick" else 1)
    for row in rows:
        assert row.pop("code") in ((3, 0) if case == "sick" else (0,))
        assert row == end


def test_the_driver_counts_what_is_changed():
    assert {"fsync", "rename", "unlink"} <= set(apply_driver.CHANGING)
