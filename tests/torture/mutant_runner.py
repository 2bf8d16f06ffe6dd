"""Reads mutants in forked children with limits, and says what each did: death, time, memory, lines, acts.

The warm process imported every reader before: a child costs a fork. A child takes mutants one after the
other and tells of each through a pipe; the parent ends a child that takes too long, and goes on with the
next mutant in a new one.
"""

from __future__ import annotations

import ctypes
import inspect
import json
import os
import resource
import select
import shutil
import signal
import stat
import sys
import time
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_pslora.errors import EdgePsloraError
from tests.torture.mutants import Mutant

SECONDS = 10.0
BATCH = 128
_PATH_EVENTS = {  # event -> positions of the names that it changes
    **dict.fromkeys(("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod"), (0,)),
    **dict.fromkeys(("os.rename", "os.link"), (0, 1)),
    "os.symlink": (1,),
}
_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Task:
    """What is read, and how.

    files: by name, all that must lie around; target: the one that mutants replace. read: raises
    EdgePsloraError, or returns after it found what was read to be harmless. argv: of a command that
    reads it, given the folder; every `command_share`-th mutant goes through it. codes: exit codes of a
    refusal. memory: bytes above the warm process. spawns: whether it may start the checker of Parquet.
    """

    name: str
    files: dict[str, bytes]
    target: str
    read: Callable[[Path], object]
    argv: Callable[[Path], list[str]] | None = None
    command_share: int = 20
    codes: tuple[int, ...] = (4,)
    memory: int = 256 << 20
    spawns: bool = False  # the program that checks a file before


@dataclass
class Outcome:
    """Of one mutant. problems: what must not be, in words; accepted: it was taken for valid."""

    mutant: str
    seconds: float = 0.0
    peak: int = 0
    accepted: bool = False
    died: bool = False
    slow: bool = False
    problems: list[str] = field(default_factory=list)


def run_mutants(
    task: Task, mutants: Sequence[Mutant], scratch: Path, seconds: float = SECONDS
) -> list[Outcome]:
    """One outcome for each mutant; what took too long is tried again, for the machine may be busy."""
    outcomes: list[Outcome] = []
    while len(outcomes) < len(mutants):
        outcomes += _batch(task, mutants[len(outcomes) :][:BATCH], scratch, seconds)
        if outcomes[-1].slow:
            outcomes[-1:] = _batch(task, [mutants[len(outcomes) - 1]], scratch, seconds)
    return outcomes


def _batch(task: Task, mutants: Sequence[Mutant], scratch: Path, seconds: float) -> list[Outcome]:
    """The outcomes of the mutants up to the first that ends the child, or of all."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    scratch.chmod(0o755)
    incoming, outgoing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(incoming)
        code = 1
        try:
            _child(task, mutants, scratch, outgoing)
            code = 0
        finally:
            os._exit(code)
    os.close(outgoing)
    outcomes, buffer, slow = [], b"", False
    began = time.monotonic()
    while True:
        left = began + seconds + 1 - time.monotonic()
        if left <= 0 or not select.select([incoming], [], [], left)[0]:
            os.kill(child, signal.SIGKILL)
            slow = True
            break
        part = os.read(incoming, 1 << 16)
        if not part:
            break
        buffer += part
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            outcomes.append(Outcome(**json.loads(line)))
            began = time.monotonic()
    os.close(incoming)
    _, status = os.waitpid(child, 0)
    if len(outcomes) < len(mutants) and (slow or status != 0):
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        slow = slow or number == signal.SIGXCPU
        what = (
            f"over {seconds:g} s" if slow else f"signal {number}" if number else "left the process"
        )
        last = Outcome(mutants[len(outcomes)].name, died=not slow, slow=slow, problems=[what])
        outcomes.append(last)
    return outcomes


def _child(task: Task, mutants: Sequence[Mutant], scratch: Path, outgoing: int) -> None:
    folder = scratch / "work"
    folder.mkdir()
    folder.chmod(0o777)  # one mutant takes root's rights away
    os.environ["TMPDIR"] = str(scratch)
    import tempfile

    tempfile.tempdir = str(scratch)
    for name, content in task.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    output = os.memfd_create("output")
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    sys.stdout = open(1, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115 - as long as we
    sys.stderr = open(2, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115
    _limit(resource.RLIMIT_AS, _status("VmSize") + task.memory + (768 << 20))
    _limit(resource.RLIMIT_FSIZE, 2 << 30)
    _limit(resource.RLIMIT_CORE, 0)
    watch = Watch(scratch, task.spawns)
    sys.addaudithook(watch)
    for number, mutant in enumerate(mutants):
        outcome = _one(task, mutant, number, folder, output, watch)
        os.write(outgoing, json.dumps(vars(outcome)).encode() + b"\n")


def _one(
    task: Task, mutant: Mutant, number: int, folder: Path, output: int, watch: Watch
) -> Outcome:
    outcome = Outcome(mutant.name)
    target = folder / (mutant.rename or task.target)
    _remove(folder / task.target)
    rss, files = _fresh_peak()  # before a mutant takes the right to ask for it
    try:
        undo = mutant.put(target)
    except OSError as problem:  # this system has no such thing
        outcome.problems.append(f"not tried: {problem}")
        return outcome
    os.ftruncate(output, 0)
    os.lseek(output, 0, os.SEEK_SET)
    _limit(resource.RLIMIT_CPU, int(time.process_time() + SECONDS) + 1)
    watch.begin()
    began = time.monotonic()
    # what the name decides is for whoever reads it by its name
    command = task.argv is not None and (
        bool(mutant.rename)
        or number % (share := 2 if mutant.place else task.command_share) == share - 1
    )
    try:
        if command and task.argv is not None:
            argv = task.argv(folder)
            argv = [a.replace(task.target, mutant.rename) if mutant.rename else a for a in argv]
            _command(argv, task, outcome)
        else:
            _read(task, folder, outcome)
    finally:
        watch.end()
        outcome.seconds = round(time.monotonic() - began, 3)
        outcome.peak = max(0, _status("VmHWM") - rss - max(0, _mapped() - files))
        if undo is not None:
            undo()
    sys.stdout.flush()
    sys.stderr.flush()
    size = os.fstat(output).st_size
    text = os.pread(output, min(size, 1 << 16), 0).decode("utf-8", "replace")
    if command:
        report = task.argv is not None and task.argv(folder)[0] == "status"
        _check_lines(text, outcome, report)
    elif text:
        outcome.problems.append(f"printed {text[:200]!r}")
    outcome.problems += watch.events[:3]
    if outcome.peak > task.memory:
        outcome.problems.append(f"{outcome.peak >> 20} MiB")
    _remove(target)
    for name in ("out", "out.safetensors"):
        _remove(folder / name)
    return outcome


def _read(task: Task, folder: Path, outcome: Outcome) -> None:
    """By the reader itself; what would be a traceback is a problem."""
    try:
        task.read(folder)
        outcome.accepted = True
    except EdgePsloraError as problem:
        if problem.exit_code not in task.codes:
            outcome.problems.append(f"exit code {problem.exit_code}: {problem}")
        if "\n" in str(problem):
            outcome.problems.append(f"more than one line: {str(problem)[:200]!r}")
    except BaseException as problem:  # noqa: BLE001 - whatever it is, it would be a traceback
        outcome.problems.append(f"{type(problem).__name__}: {problem}"[:300])


def _command(argv: list[str], task: Task, outcome: Outcome) -> None:
    from edge_pslora.cli.main import main

    try:
        code = main(argv)
    except BaseException as problem:  # noqa: BLE001 - whatever it is, it would be a traceback
        outcome.problems.append(f"{type(problem).__name__}: {problem}"[:300])
        return
    outcome.accepted = code == 0
    if code and code not in task.codes:
        outcome.problems.append(f"exit code {code}")


def _check_lines(text: str, outcome: Outcome, report: bool) -> None:
    """Of a refusal exactly one line; of what was accepted any, but no traceback.

    report: the command tells what is there, damage and all, before it ends with its one line; what was
    damaged after it had been read is in its table, which ends with that.
    """
    lines = text.splitlines()[-1:] if report else text.splitlines()
    if outcome.accepted:
        if "Traceback" in text:
            outcome.problems.append("a traceback")
        return
    told = ("edge-pslora", "damaged: ") if report else ("edge-pslora",)
    if len(lines) != 1 or not lines[0].startswith(told):
        outcome.problems.append(f"{len(lines)} lines: {text[:300]!r}")
    elif any("exit code" in problem for problem in outcome.problems):
        outcome.problems.append(lines[0][:300])


class Watch:
    """An audit hook: code run, pickles, networks, programs, and changes outside of `allowed`."""

    def __init__(self, allowed: Path, spawns: bool) -> None:
        self.allowed, self.spawns = f"{allowed}/", spawns
        self.events: list[str] = []
        self.on = False

    def begin(self) -> None:
        self.events, self.on = [], True

    def end(self) -> None:
        self.on = False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if (
            event == "pickle.find_class"
            or (event.startswith("socket.") and event != "socket.__new__")
            or (event == "exec" and not _importing())
            or (event == "subprocess.Popen" and not (self.spawns and _is_check(args)))
            or event in _FORBIDDEN
        ):
            if not (event in ("os.posix_spawn", "os.fork") and self.spawns):
                self.events.append(f"{event} {ascii(args)[:100]}")
        elif event == "open":
            self._opened(*args)
        elif event in _PATH_EVENTS:
            for position in _PATH_EVENTS[event]:
                folder = -1 if event == "os.truncate" else args[-1]
                self._changed(event, args[position], folder if folder >= 0 else None)

    def _opened(self, path: Any, mode: Any, flags: Any) -> None:
        if isinstance(flags, int) and flags & _WRITING and not isinstance(path, int):
            self._changed("open", path)

    def _changed(self, event: str, path: Any, folder: int | None = None) -> None:
        if isinstance(path, int):
            return
        start = self.allowed if folder is None else Path(f"/proc/self/fd/{folder}").readlink()
        name = os.path.abspath(os.path.join(start, os.fsdecode(path)))  # noqa: PTH100, PTH118 - no links
        if not f"{name}/".startswith(self.allowed) and name != os.devnull:
            self.events.append(f"{event} {name}")


def _is_check(args: tuple[Any, ...]) -> bool:
    """Our own checker of Parquet files, the only program that a reader may start."""
    return args[0] == sys.executable and str(args[1][-1]).endswith("parquet_check.py")


def _importing() -> bool:
    """Whether code runs because a module is imported for the first time, or is one of our annotations."""
    frame = sys._getframe(2)
    if frame.f_code.co_filename in (
        inspect.__file__,
        typing.__file__,
    ):  # typer reads the types of a command's options
        return True
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _fresh_peak() -> tuple[int, int]:
    """Starts a new peak; (resident bytes, those of them that are of files)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS"), _mapped()


def _mapped() -> int:
    """Resident bytes of files, which the system takes back at will."""
    return _status("RssFile") + _status("RssShmem")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in /proc/self/status")


def _limit(which: int, value: int) -> None:
    _, most = resource.getrlimit(which)
    resource.setrlimit(which, (value if most == resource.RLIM_INFINITY else min(value, most), most))


def _remove(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if stat.S_ISDIR(mode):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def trim() -> None:
    """Gives free memory back, so that children do not count what the parent left over."""
    ctypes.CDLL(None).malloc_trim(0)
