"""The units of examples/updaters/systemd: verified by systemd where it is there, and what they start."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.updaters.unit_files import command_line, environment_file, settings
from tests.updaters.updaters_kit import UPDATERS, apply_call, can, make_device, resume_call

UNITS = sorted((UPDATERS / "systemd").iterdir())
SERVICES = [path for path in UNITS if path.suffix == ".service"]
MOST_EXPOSURE = "15"  # tenths: systemd's own words go from 0 SAFE to 100 UNSAFE

needs_systemd = pytest.mark.skipif(
    not can("systemd-analyze"), reason="systemd-analyze is not installed"
)


def _analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def _verify(root: Path, *units: Path) -> list[str]:
    """What systemd-analyze verify says of them in a system that has the command."""
    command = root / "usr" / "bin" / "edge-pslora"
    command.parent.mkdir(parents=True, exist_ok=True)
    command.write_text("#!/bin/sh\n", encoding="ascii")
    command.chmod(0o755)
    folder = root / "etc" / "systemd" / "system"
    folder.mkdir(parents=True, exist_ok=True)
    copies = [shutil.copy(path, folder) for path in units]
    done = _analyze("verify", "--man=no", "--recursive-errors=no", f"--root={root}", *copies)
    return [f"exit code {done.returncode}"] * (done.returncode != 0) + done.stderr.splitlines()


@needs_systemd
def test_systemd_finds_nothing_to_say(tmp_path):
    assert _verify(tmp_path, *UNITS) == []


@needs_systemd
@pytest.mark.parametrize(
    ("old", "new"),
    [("Type=oneshot", "Type=once"), ("User=", "Usr="), ("/usr/bin/edge-pslora", "/usr/bin/none")],
)
def test_a_mistake_in_a_unit_is_noticed(tmp_path, old, new):
    changed = tmp_path / SERVICES[0].name
    text = SERVICES[0].read_text(encoding="utf-8")
    changed.write_text(text.replace(old, new), encoding="utf-8")
    assert _verify(tmp_path / "root", changed)


@needs_systemd
@pytest.mark.parametrize("unit", SERVICES, ids=lambda path: path.stem)
def test_services_are_exposed_to_little(tmp_path, unit):
    done = _analyze("security", "--offline=yes", f"--threshold={MOST_EXPOSURE}", unit)
    if "nrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze reads no unit files by itself")
    assert done.returncode == 0, done.stdout
    open_one = tmp_path / unit.name
    lines = unit.read_text(encoding="utf-8").splitlines(keepends=True)
    open_one.write_text(
        "".join(line for line in lines if "Private" not in line and "Protect" not in line),
        encoding="utf-8",
    )
    worse = _analyze("security", "--offline=yes", f"--threshold={MOST_EXPOSURE}", open_one)
    assert worse.returncode != 0


@needs_systemd
def test_the_nightly_hour_is_one_that_systemd_knows():
    timer = settings(UPDATERS / "systemd" / "edge-pslora-update.timer")
    assert _analyze("calendar", *timer["Timer.OnCalendar"]).returncode == 0
    assert _analyze("timespan", *timer["Timer.RandomizedDelaySec"]).returncode == 0


def test_services_differ_only_in_what_they_do():
    """One set of walls, written twice: systemd has no include."""
    update, resume = (settings(path) for path in reversed(SERVICES))
    assert update["Unit.Description"] != resume["Unit.Description"]
    own = {"ExecStart", "Restart", "RestartSec", "RestartPreventExitStatus", "TimeoutStartSec"}
    walls = [
        {
            name: values
            for name, values in unit.items()
            if name.startswith("Service.") and name.split(".")[1] not in own | {"IOSchedulingClass"}
        }
        for unit in (update, resume)
    ]
    assert walls[0] == walls[1]
    assert walls[0]["Service.ProtectSystem"] == ["strict"]
    assert walls[0]["Service.PrivateNetwork"] == ["yes"]
    # an update is tried again by itself only where that may help: locked, or killed from outside
    assert update["Service.RestartPreventExitStatus"] == ["1 2 3 4 6"]
    assert update["Service.Restart"] == ["on-failure"]
    assert "Service.Restart" not in resume


def test_timer_and_path_start_the_update():
    for name in ("timer", "path"):
        unit = settings(UPDATERS / "systemd" / f"edge-pslora-update.{name}")
        section = name.capitalize()
        assert unit[f"{section}.Unit"] == ["edge-pslora-update.service"]
        assert "Install.WantedBy" in unit
    watched = unit["Path.PathChanged"]
    shipped = environment_file(UPDATERS / "update.conf")
    assert watched == [f"{shipped['EDGE_PSLORA_FROM']}/metadata/timestamp.json"]
    state = settings(SERVICES[0])["Service.StateDirectory"]
    assert [shipped["EDGE_PSLORA_WORKSPACE"]] == [f"/var/lib/{name}" for name in state]


def test_what_the_services_start(tmp_path):
    """The ExecStart lines as they stand, with the settings of one device."""
    device = make_device(tmp_path / "a device")
    environment = environment_file(device.folder / "update.conf")
    resume, update = (command_line(path, environment) for path in SERVICES)
    for line in (update, resume):
        assert line[0] == "/usr/bin/edge-pslora"
        path = f"{device.folder}{os.pathsep}/usr/bin{os.pathsep}/bin"
        subprocess.run(["edge-pslora", *line[1:]], env={"PATH": path}, check=True)
    assert device.calls() == [
        apply_call(device, device.folder / "inbox")[:-1],  # words for the journal, no --json
        resume_call(device),
    ]
