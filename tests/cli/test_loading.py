"""Imports that Python's search for circular garbage does not look at: in a process of its own."""

from __future__ import annotations

import gc
import subprocess
import sys

from edge_pslora.cli.loading import heavy_imports

PROGRAM = """
import gc, sys
from edge_pslora.cli.loading import heavy_imports
with heavy_imports():
    assert not gc.isenabled()
    import torch
assert gc.isenabled()
print(gc.get_freeze_count(), len(gc.get_objects()))
"""


def test_what_is_imported_is_never_searched():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    frozen, searched = map(int, done.stdout.split())
    assert frozen > 20 * searched


def test_a_process_that_has_torch_is_left_alone():
    import torch  # noqa: F401

    before = gc.get_freeze_count()
    with heavy_imports():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before
