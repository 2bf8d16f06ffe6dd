"""Health checks that fail, hang, fork, or are not there."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from edge_pslora.device.health import HealthCheck, parse_check, run_check
from edge_pslora.errors import UsageError
from tests.device.device_kit import HEALTHY


def shell(script: str, timeout: float = 10) -> HealthCheck:
    return HealthCheck(("sh", "-c", script), timeout, 0)


def alive(pid: int) -> bool:
    with suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
        return stat.rpartition(")")[2].split()[0] != "Z"
    return False


def test_success_and_its_environment(capfd):
    variables = {"EDGE_PSLORA_GENERATION": "7"}
    assert run_check(HEALTHY, {}) is None
    script = 'test "$EDGE_PSLORA_GENERATION" = 7 && test -n "$PATH" && echo said && ! read line'
    assert run_check(shell(script), variables) is None
    out, err = capfd.readouterr()
    assert (out, err) == ("", "said\n")
    assert "EDGE_PSLORA_GENERATION" not in os.environ


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 3", "exit code 3"),
        ("kill -SEGV $$", "signal 11"),
        ("kill -9 0", "signal 9"),
        ("exec /no/such/program", "exit code 127"),
    ],
)
def test_failures(script, why):
    assert why in run_check(shell(script), {})


def test_one_that_hangs_is_ended_with_all_it_started(tmp_path):
    pids = tmp_path / "pids"
    script = f"trap '' TERM; sleep 60 & echo $! > {pids}; echo $$ >> {pids}; sleep 60"
    begun = time.monotonic()
    assert "after 0.5 seconds" in run_check(shell(script, 0.5), {})
    assert time.monotonic() - begun < 5
    time.sleep(0.05)
    assert [alive(int(pid)) for pid in pids.read_text().split()] == [False, False]


def test_what_it_leaves_running_ends_with_it(tmp_path):
    pid = tmp_path / "pid"
    assert run_check(shell(f"sleep 60 & echo $! > {pid}"), {}) is None
    time.sleep(0.05)
    assert not alive(int(pid.read_text()))


def test_commands_are_split_and_no_shell_runs():
    check = parse_check("sh -c 'exit 0' ';' '$HOME'", 60, 10)
    assert check == HealthCheck(("sh", "-c", "exit 0", ";", "$HOME"), 60, 10)
    for text in ("", "  ", "no-such-program-here x", "a 'b", "/etc/passwd", "true\0"):
        with pytest.raises(UsageError, match="--health-check"):
            parse_check(text, 60, 10)
    assert "could not be started" in run_check(HealthCheck(("/etc/passwd",), 1, 0), {})
