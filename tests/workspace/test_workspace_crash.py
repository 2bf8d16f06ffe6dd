"""Killed at every changing call: the old generation or the new one serves, and work goes on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from edge_pslora.workspace.lock import writer_lock
from edge_pslora.workspace.tensors import read_tensors
from edge_pslora.workspace.workspace import Workspace
from tests.workspace import workspace_driver as driver

DRIVER = Path(driver.__file__)
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
# system calls that change the disk, by the name under which this platform makes them
CALLS = {
    "write": "?write",
    "pwrite64": "?pwrite64",
    "fsync": "?fsync",
    "rename": "?rename,?renameat,?renameat2",
    "unlink": "?unlink",
    "unlinkat": "?unlinkat",
    "mkdir": "?mkdir,?mkdirat",
    "rmdir": "?rmdir",
    "ftruncate": "?ftruncate",
}


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], env=ENV, capture_output=True, text=True, timeout=120
    )


def strace_works() -> bool:
    if shutil.which("strace") is None:
        return False
    return run("strace", "-f", "-e", "inject=?rmdir:signal=SIGKILL:when=99", "true").returncode == 0


STRACE = strace_works()


@pytest.fixture
def fast_checks(monkeypatch):
    """The run after a kill is checked for what it leaves, not for durability: no need to wait."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("template") / "w"
    workspace = driver.make_workspace(path)
    with writer_lock(path):
        driver.add_generation(workspace, "first")
        driver.add_generation(workspace, "second")
    return path


def copies(template: Path, root: Path, cases: Iterable[int]) -> None:
    for n in cases:
        shutil.copytree(template, root / str(n))


def check_survivor(path: Path) -> None:
    """What must hold after any kill."""
    published = path.with_name(f"{path.name}.published").exists()
    back = path.with_name(f"{path.name}.back").exists()
    workspace = Workspace.open(path)
    current = workspace.current()
    assert current is not None
    current.verify()
    serving = {2} if back else {2, 3}  # `published` is said before the roll back begins
    assert current.number in serving
    assert workspace.generations() in ([(1, 2, 3)] if published else [(1, 2), (1, 2, 3)])
    for number in workspace.generations():  # each is whole and says one thing only
        generation = workspace.generation(number)
        generation.verify()
        for name in ("model.safetensors", "history.safetensors"):
            values = read_tensors(generation.file(name))["w"]
            assert set(values.tolist()) == {float(number)}
    assert workspace.status(verify=True)["damage"] == []
    with writer_lock(path):  # the next run needs no help and leaves nothing behind
        number = driver.add_generation(workspace, "next")
    assert workspace.current().number == number
    assert workspace.status()["warnings"] == []
    assert {entry.name for entry in path.iterdir()} == {
        "workspace.json", "current", "lock", "base", "generations", "staging",
    }  # fmt: skip
    assert list((path / "staging").iterdir()) == []


def count_calls(template: Path, folder: Path) -> int:
    """How many changing calls of the os module the work makes, by trying."""
    shutil.copytree(template, folder / "w")
    code = (
        "import os, sys, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "import workspace_driver as d\n"
        "calls = []\n"
        "for name in d.CHANGING:\n"
        "    real = getattr(os, name)\n"
        "    setattr(os, name, lambda *a, _real=real, **k: (calls.append(1), _real(*a, **k))[1])\n"
        "d.work(pathlib.Path(sys.argv[2]))\n"
        "print(len(calls))\n"
    )
    done = run(sys.executable, "-c", code, DRIVER.parent, folder / "w")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_killed_before_changing_calls_of_python(template, tmp_path, fast_checks):
    """Every call where strace cannot do the same below; every sixth where it can."""
    count = count_calls(template, tmp_path)
    assert count > 80
    step = 6 if STRACE else 1
    cases = range(1, count + 1, step)
    copies(template, tmp_path, cases)
    done = run(sys.executable, DRIVER, "kill-nth", tmp_path, count, step)
    assert done.returncode == 0, done.stderr
    unfinished = 0
    for n in cases:
        unfinished += not (tmp_path / f"{n}.back").exists()
        check_survivor(tmp_path / str(n))
    assert 0 < unfinished < len(cases)  # the kills did happen, before and after the roll back


@pytest.mark.skipif(not STRACE, reason="strace is not here or not permitted; see the test above")
@pytest.mark.parametrize("call", CALLS)
def test_killed_at_every_system_call(template, tmp_path, call, fast_checks):
    shutil.copytree(template, tmp_path / "w")
    trace = tmp_path / "trace"
    filters = CALLS[call]
    done = run(
        "strace", "-f", "-qq", "-o", trace, "-e", f"trace={filters}",
        sys.executable, DRIVER, "work", tmp_path / "w",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    count = sum("(" in line for line in trace.read_text().splitlines())
    if call in ("write", "fsync", "rename", "mkdir"):
        assert count > 0
    copies(template, tmp_path, range(1, count + 1))
    done = run(
        "strace", "-f", "-qq", "-o", trace, "-e", f"trace={filters}",
        "-e", f"inject={filters}:signal=SIGKILL:when={max(count, 1)}",
        sys.executable, DRIVER, "strace", tmp_path, count, call,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert trace.read_text().count("killed by SIGKILL") == count
    for n in range(1, count + 1):
        check_survivor(tmp_path / str(n))


@pytest.mark.skipif(not STRACE, reason="strace is not here; test_durable asserts the same order")
def test_every_rename_has_fsync_before_and_folder_fsync_after(template, tmp_path):
    shutil.copytree(template, tmp_path / "w")
    trace = tmp_path / "trace"
    done = run(
        "strace", "-f", "-qq", "-y", "-s", "4096", "-o", trace,
        "-e", "trace=?write,?fsync,?rename,?renameat,?renameat2",
        sys.executable, DRIVER, "work", tmp_path / "w",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = trace.read_text().splitlines()
    renames = 0
    for at, line in enumerate(lines):
        match = re.search(r'rename\w*\(.*?"([^"]+)".*?"([^"]+)"', line)
        if match is None or "/trash/" in match[2] or match[2].endswith("refused"):
            continue
        renames += 1
        source, target = match[1], match[2]
        pending: set[str] = set()  # written and not yet synced
        for earlier in lines[:at]:
            written = re.search(r"write\(\d+<([^>]+)>", earlier)
            synced = re.search(r"fsync\(\d+<([^>]+)>\) += 0", earlier)
            if written and (written[1] == source or written[1].startswith(f"{source}/")):
                pending.add(written[1])
            if synced:
                pending.discard(synced[1])
        assert pending == set(), f"renamed before fsync: {target}"
        assert any(
            f"<{Path(target).parent}>) " in later and "fsync" in later
            for later in lines[at + 1 : at + 4]
        ), f"no fsync of the folder of {target}"
    assert renames > 8
