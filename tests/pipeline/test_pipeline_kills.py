"""`adapt` in a fresh interpreter, as a user has it: locked while it runs, killed, and run again.

Killed at every call, at random and at random steps: tests/torture/kills.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from edge_pslora import Workspace
from tests.pipeline import pipeline_kit as kit

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# small batches and many epochs: 216 steps, so that a kill finds training under way
LONG = ("--batch-size", "5", "--epochs", "6", "--seed", "7")
# what must not depend on how often the run was killed
SAME = (
    *("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "model.safetensors"),
    *("history.safetensors", "head.safetensors", "anchor.safetensors", "model.onnx"),
)


def test_the_command_itself_locked_killed_and_run_again(two_sessions, run, tmp_path):
    data = kit.digits_npz(tmp_path / "third.npz", (7, 8, 9))
    whole, killed = (Path(shutil.copytree(two_sessions, tmp_path / name)) for name in "wk")
    assert run("adapt", data, "--workspace", whole, *LONG).code == 0
    code = "import sys; from edge_pslora.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = ["adapt", str(data), "--workspace", str(killed), *LONG]
    with subprocess.Popen([sys.executable, "-c", code, *command], env=ENVIRONMENT) as process:
        deadline = time.monotonic() + 60
        while not list((killed / "staging").glob("*.run/training.safetensors")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        second = run(*command)
        process.kill()
    assert second.code == 5
    assert second.facts["error"] == "WorkspaceLockedError"
    assert str(process.pid) in second.facts["found"]
    assert Workspace.open(killed).status(verify=True)["damage"] == []
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--json"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["resumed_at"] > 0
    for name in SAME:
        assert kit.files_of(killed, 3)[name] == kit.files_of(whole, 3)[name]
