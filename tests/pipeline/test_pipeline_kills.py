"""`adapt` killed at many moments: never a broken workspace, and the same bytes in the end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edge_pslora import Workspace
from edge_pslora.cli.main import main
from tests.pipeline import pipeline_kit as kit

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
RUNNER = Path(__file__).with_name("pipeline_runner.py")
# small batches and many epochs: 216 steps, so that a kill finds training under way
LONG = ("--batch-size", "5", "--epochs", "6", "--seed", "7", "--json")
# what must not depend on how often the run was killed
SAME = (
    *("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "model.safetensors"),
    *("history.safetensors", "head.safetensors", "anchor.safetensors", "model.onnx"),
)
CHECKPOINT = "edge_pslora.pipeline.memory_files:write_tensors:after"
CANDIDATE = "edge_pslora.pipeline.run:write_candidate"
PUBLISH = "edge_pslora.workspace.durable:publish_folder"
POINTER = "edge_pslora.workspace.workspace:replace_pointer"


@dataclass
class Runner:
    """See pipeline_runner.py."""

    process: subprocess.Popen[str]
    out: Path

    def start(self, *arguments: object, kill: str | None = None) -> int:
        """Begin a command; returns its process id."""
        task = {"argv": [str(a) for a in arguments], "kill": kill, "out": str(self.out)}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return int(self._line())

    def wait(self) -> int:
        """The exit code of the command begun last; -9 if it was killed."""
        return int(self._line())

    def run(self, *arguments: object, kill: str | None = None) -> int:
        self.start(*arguments, kill=kill)
        return self.wait()

    def facts(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.out.read_text())
        return found

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    out = tmp_path_factory.mktemp("runner") / "out"
    with subprocess.Popen(
        [sys.executable, str(RUNNER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        runner = Runner(process, out)
        assert runner._line() == "ready"
        yield runner


@dataclass(frozen=True)
class Expected:
    """start: a workspace after one session; second: the data of the next; files: what it gives."""

    first: Path
    second: Path
    start: Path
    files: dict[int, dict[str, str]]


@pytest.fixture(scope="module")
def expected(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """Both sessions, uninterrupted."""
    folder = tmp_path_factory.mktemp("expected")
    first = kit.digits_npz(folder / "first.npz", (0, 1, 2))
    second = kit.digits_npz(folder / "second.npz", (3, 4, 5))
    whole = folder / "w"
    code = runner.run("adapt", first, "--model", "auto", "--workspace", whole, *LONG)
    assert code == 0, runner.out.read_text()
    start = Path(shutil.copytree(whole, folder / "start"))
    assert runner.run("adapt", second, "--workspace", whole, *LONG) == 0
    files = {number: _compared(whole, number) for number in (1, 2)}
    return Expected(first, second, start, files)


def _compared(workspace: Path, number: int) -> dict[str, str]:
    return {name: kit.files_of(workspace, number)[name] for name in SAME}


def _check_survivor(workspace: Path, expected: Expected) -> None:
    """After a kill: nothing is damaged and what serves is one whole generation."""
    opened = Workspace.open(workspace)
    assert opened.status(verify=True)["damage"] == []
    current = opened.current()
    assert current is not None
    assert _compared(workspace, current.number) == expected.files[current.number]
    assert main(["status", str(workspace), "--verify"]) == 0


PLANS = {
    "every stage up to the rename": [
        *(f"{CHECKPOINT}:1", f"{CHECKPOINT}:2", f"{CANDIDATE}:after:1", f"{PUBLISH}:before:1"),
    ],
    "between rename and pointer": [f"{PUBLISH}:after:1"],
    "after the pointer": [f"{POINTER}:after:1"],
}


@pytest.mark.parametrize("plan", PLANS)
def test_killed_runs_end_in_the_same_bytes(plan, runner, expected, tmp_path, capsys):
    workspace = Path(shutil.copytree(expected.start, tmp_path / "w"))
    command = ("adapt", expected.second, "--workspace", workspace, *LONG)
    for kill in PLANS[plan]:
        assert runner.run(*command, kill=kill) == -signal.SIGKILL
        _check_survivor(workspace, expected)
    assert runner.run(*command) == 0, runner.out.read_text()
    facts = runner.facts()
    assert (facts["generation"], facts["promoted"]) == (2, True)
    assert facts["resumed_at"] == (200 if plan.startswith("every") else 0)
    assert _compared(workspace, 2) == expected.files[2]
    opened = Workspace.open(workspace)
    assert opened.generations() == (1, 2)
    assert opened.status(verify=True)["damage"] == []
    assert opened.status()["warnings"] == []


def test_killed_at_random_moments(runner, expected, tmp_path, capsys):
    """By another process, at any time from the first checkpoint on."""
    workspace = Path(shutil.copytree(expected.start, tmp_path / "w"))
    command = ("adapt", expected.second, "--workspace", workspace, *LONG)
    rng = np.random.default_rng(0)
    killed = 0
    for _ in range(4):
        process = runner.start(*command)
        _wait_for_checkpoint(workspace)
        time.sleep(float(rng.uniform(0, 0.4)))
        os.kill(process, signal.SIGKILL)
        killed += runner.wait() == -signal.SIGKILL
        _check_survivor(workspace, expected)
    assert killed > 0
    assert runner.run(*command) == 0
    current = Workspace.open(workspace).current()
    assert current is not None
    # a kill after the publication leaves a run that is over; the next one is a session of its own
    assert current.number >= 2
    assert _compared(workspace, 2) == expected.files[2]


def _wait_for_checkpoint(workspace: Path) -> None:
    deadline = time.monotonic() + 60
    while not list((workspace / "staging").glob("*.run/training.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_first_session_that_is_killed(runner, expected, tmp_path):
    """While the base is published, before workspace.json, in training, and at the publication."""
    workspace = tmp_path / "w"
    command = ("adapt", expected.first, "--model", "auto", "--workspace", workspace, *LONG)
    for kill in (
        *(f"{PUBLISH}:before:1", f"{PUBLISH}:after:1", f"{POINTER}:before:1"),
        *(f"{CHECKPOINT}:1", f"{PUBLISH}:before:1", f"{PUBLISH}:after:1"),
    ):
        assert runner.run(*command, kill=kill) == -signal.SIGKILL
        if Workspace.exists(workspace):
            assert Workspace.open(workspace).status(verify=True)["damage"] == []
            assert Workspace.open(workspace).current() is None
    assert runner.run(*command) == 0, runner.out.read_text()
    assert _compared(workspace, 1) == expected.files[1]
    assert Workspace.open(workspace).generations() == (1,)
    assert Workspace.open(workspace).status()["warnings"] == []


def test_two_writers_at_once(runner, expected, tmp_path, capsys):
    workspace = Path(shutil.copytree(expected.start, tmp_path / "w"))
    command = ("adapt", expected.second, "--workspace", workspace, *LONG)
    process = runner.start(*command)
    _wait_for_checkpoint(workspace)
    assert main([str(part) for part in command]) == 5
    facts = json.loads(capsys.readouterr().out)
    assert facts["error"] == "WorkspaceLockedError"
    assert str(process) in facts["found"]
    assert runner.wait() == 0
    assert _compared(workspace, 2) == expected.files[2]


def test_the_command_itself_killed_and_run_again(expected, tmp_path):
    """The same without the warm process: a fresh interpreter, as a user has it."""
    workspace = Path(shutil.copytree(expected.start, tmp_path / "w"))
    code = "import sys; from edge_pslora.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "adapt", str(expected.second)]
    command += ["--workspace", str(workspace), *LONG]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL) as process:
        _wait_for_checkpoint(workspace)
        process.kill()
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["resumed_at"] > 0
    assert _compared(workspace, 2) == expected.files[2]
