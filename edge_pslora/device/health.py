"""The device's own health check: a command that ends with 0 when the new model is fit to serve."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from edge_pslora.errors import UsageError

_FIRST_LOOK, _LONGEST_LOOK = 0.005, 0.1  # seconds between looks at whether it has ended


@dataclass(frozen=True)
class HealthCheck:
    """command: the program and its arguments. timeout: seconds it may take; interval: seconds from a
    failure to the next try."""

    command: tuple[str, ...]
    timeout: float
    interval: float


def parse_check(text: str, timeout: float, interval: float) -> HealthCheck:
    """The words of `text` as a shell would split them; no shell ever runs.

    Raises:
        UsageError: no such command: a wrong name must not pass for a bad model.
    """
    try:
        words = tuple(shlex.split(text))
    except ValueError as problem:
        raise _wrong(text, str(problem)) from problem
    if not words or "\0" in text:
        raise _wrong(text, "no command")
    if shutil.which(words[0]) is None:
        raise _wrong(text, f"no program {words[0]} that can be run")
    return HealthCheck(words, timeout, interval)


def run_check(check: HealthCheck, variables: Mapping[str, str]) -> str | None:
    """One try, with `variables` added to the environment. None: healthy; else what was wrong.

    It has a process group of its own, and no more than its time; whatever it started in that group
    ends with it. Its output goes to stderr.
    """
    try:
        process = subprocess.Popen(
            check.command,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=2,
            start_new_session=True,
        )
    except OSError as problem:
        return f"it could not be started: {problem.strerror}"
    try:
        ended = _wait(process.pid, check.timeout)
    finally:
        # it still has its number here, ended or not: nobody else's group can have it
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    if not ended:
        return f"it had not ended after {check.timeout:g} seconds"
    if code < 0:
        return f"it was ended by signal {-code}"
    return None if code == 0 else f"it ended with exit code {code}"


def _wait(pid: int, timeout: float) -> bool:
    """Whether the process ended in time; it stays a zombie, and its number its own."""
    end, pause = time.monotonic() + timeout, _FIRST_LOOK
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        left = end - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_LOOK)
    return True


def _wrong(text: str, found: str) -> UsageError:
    return UsageError(
        "--health-check",
        expected="a command, as in --health-check 'systemctl is-active my.service'",
        found=f"{ascii(text)[:80]}: {found}",
        remedy="change the argument; nothing was changed",
    )
