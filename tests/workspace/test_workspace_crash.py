"""In what order a writer reaches the disk. Kills: tests/torture/kills.py; power losses: power.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge_pslora.workspace.lock import writer_lock
from tests.torture import tracer
from tests.workspace import workspace_driver as driver

# in a process of its own: pytest's workers have threads
_TRACED = """
import json, sys
from pathlib import Path
from tests.torture.tracer import permitted, run_traced
from tests.workspace import workspace_driver as driver
if not permitted(): sys.exit(77)
path = Path(sys.argv[1])
done = run_traced(lambda: driver.work(path) or 0, path)
assert done.exit == 0
print(json.dumps([(call.name, call.path, call.target) for call in done.calls]))
"""


@pytest.mark.skipif(
    not tracer.AVAILABLE, reason="no tracer here; test_durable asserts the same order"
)
def test_every_rename_has_fsync_before_and_folder_fsync_after(tmp_path):
    path = tmp_path / "w"
    workspace = driver.make_workspace(path)
    with writer_lock(path):
        driver.add_generation(workspace, "first")
        driver.add_generation(workspace, "second")
    done = subprocess.run(
        [sys.executable, "-c", _TRACED, str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode == 77:
        pytest.skip("ptrace is not permitted here; test_durable asserts the same order")
    assert done.returncode == 0, done.stderr
    calls = [tuple(call) for call in json.loads(done.stdout)]
    renames = 0
    for at, (name, source, target) in enumerate(calls):
        if name != "rename" or "/trash/" in target or target.endswith("refused"):
            continue
        renames += 1
        pending: set[str] = set()  # written and not yet synced
        for earlier, written, _ in calls[:at]:
            if earlier == "write" and f"{written}/".startswith(f"{source}/"):
                pending.add(written)
            elif earlier == "fsync":
                pending.discard(written)
        assert pending == set(), f"renamed before fsync: {target}"
        after = [path for later, path, _ in calls[at + 1 : at + 4] if later == "fsync"]
        assert str(Path(target).parent) in after, f"no fsync of the folder of {target}"
    assert renames > 8
