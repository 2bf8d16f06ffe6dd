"""From a fresh device to a signed update, a failed health check and the way back, with the real command:
the walk as it is printed, and the same through Mender, RAUC, SWUpdate and systemd, with power cuts.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_pslora.cli.main import main
from tests.updaters.unit_files import command_line, environment_file
from tests.updaters.updaters_kit import SCRIPTS, UPDATERS, Device, Mender, write_settings

pytestmark = pytest.mark.slow
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="the power cut finds its group in /proc"
)

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
# what apply tells a health check
LOOK = """#!/bin/sh
test "$EDGE_PSLORA_WORKSPACE" = "${0%/*}/workspace" || exit 2
test "$EDGE_PSLORA_MODEL" = "$EDGE_PSLORA_WORKSPACE/generations/00000$EDGE_PSLORA_GENERATION/model.onnx"
"""
# ends every process of the group that its caller leads, as a power cut would
POWER_CUT = "#!/bin/sh\nkill -9 -\"$(cut -d ' ' -f 5 /proc/$PPID/stat)\"\n"


@dataclass(frozen=True)
class Walked:
    """What the walk printed and left: bundles of the publisher, a device's program, probe and root."""

    folder: Path
    lines: list[str]

    @property
    def publisher(self) -> Path:
        return self.folder / "publisher"

    def bundle(self, name: str) -> dict[str, bytes]:
        """first: full with base; second: signed, and worse; third: a delta on the first."""
        return {"bundle.tar": (self.publisher / f"{name}.tar").read_bytes()}

    def device(self, folder: Path) -> Device:
        """A new one with the walk's program, and a health check that is one file: `check`."""
        folder.mkdir()
        shutil.copy(self.folder / "device" / "bin" / "edge-pslora", folder)
        made = Device(folder)
        use_check(made, f"#!/bin/sh\nexec {shlex.join(self.check())}\n")
        write_settings(
            folder / "update.conf",
            made.workspace,
            ROOT=str(self.folder / "device" / "root.json"),
            CLASS="camera-v2",
            HEALTH_CHECK=shlex.join([str(folder / "check")]),
            FROM=str(self.publisher / "out"),
        )
        return made

    def check(self) -> list[str]:
        probe = self.folder / "device" / "probe.npz"
        return [sys.executable, str(UPDATERS / "health_check.py"), str(probe), "0.8"]


def use_check(device: Device, text: str) -> None:
    path = device.folder / "check"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture(scope="session")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Walked:
    folder = tmp_path_factory.mktemp("walk")
    start = _cpu_seconds()
    done = subprocess.run(
        [sys.executable, str(UPDATERS / "walk.py"), str(folder)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # "in half a minute": its own work, whatever else the machine does meanwhile
    assert _cpu_seconds() - start < 30
    return Walked(folder, done.stdout.splitlines())


def _cpu_seconds() -> float:
    """Of all child processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _status(device: Device) -> dict[str, object]:
    arguments = ["status", str(device.workspace), "--verify", "--json"]
    done = device.run(device.folder / "edge-pslora", *arguments)
    assert done.returncode == 0, done.stdout
    facts: dict[str, object] = json.loads(done.stdout)
    return facts


def test_the_walk_says_what_happened(walked):
    text = "\n".join(walked.lines)
    ends = [line.split()[-1] for line in walked.lines if line.startswith("    exit code")]
    assert ends == ["4", "3", "3"]  # one signature; three failed checks; the same bundle again
    assert "1 more signature needed" in text
    assert "found none there; check the path, or copy the bundle as a whole once enough" in text
    assert "    history   none here" in text
    assert [line for line in walked.lines if line.startswith("    health check ")] == [
        f"    health check {n} of 3 failed: it ended with exit code 1" for n in (1, 2, 3)
    ]
    assert "generation 1 serves again" in text
    assert "counter 2, which this device refused" in text
    assert walked.lines[-1].startswith("The device serves device/workspace/generations/000003/")
    served = [line.split("served")[1].split()[1] for line in walked.lines if "  served " in line]
    assert [number.strip(",") for number in served] == ["1", "1", "1", "3", "3"]


def test_the_device_of_the_walk_can_import_neither_torch_nor_onnx(walked):
    for name in ("torch", "onnx"):
        environment = {**ENVIRONMENT, "PYTHONPATH": str(walked.folder / "device" / "lib")}
        done = subprocess.run(
            [sys.executable, "-P", "-c", f"import {name}"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert f"No module named '{name}' on this device" in done.stderr
    program = (walked.folder / "device" / "bin" / "edge-pslora").read_text(encoding="utf-8")
    assert f"PYTHONPATH={walked.folder / 'device' / 'lib'} exec" in program


@needs_proc
def test_mender_then_systemd(walked, tmp_path):
    device = walked.device(tmp_path / "a device")
    mender = Mender(device, tmp_path / "tree")
    assert mender.deploy(walked.bundle("first")), mender.errors
    assert device.serving() == 1
    assert not mender.deploy(walked.bundle("second"))
    assert dict(mender.states)["ArtifactInstall"] == 3
    assert device.serving() == 1
    facts = _status(device)
    assert facts["damage"] == []
    assert facts["updates"]["failed_counter"] == 2
    assert facts["updates"]["trial"] is None

    # the service's ExecStart line, which finds the third; the power goes in its health check
    good = (device.folder / "check").read_text(encoding="utf-8")
    use_check(device, POWER_CUT)
    assert _start(device, "update") == -signal.SIGKILL
    assert device.serving() == 3
    assert _status(device)["updates"]["trial"]["attempts"] == 1
    # the service that runs at each start
    use_check(device, good)
    assert _start(device, "resume") == 0
    assert _status(device)["updates"]["trial"] is None
    assert device.serving() == 3
    published = walked.publisher / "w" / "generations" / "000003" / "model.onnx"
    model = device.workspace / "generations" / "000003" / "model.onnx"
    assert model.read_bytes() == published.read_bytes()
    assert _start(device, "update") == 0  # nothing to do
    assert device.serving() == 3


@needs_proc
def test_rauc_then_mender_with_a_power_cut_then_swupdate(walked, tmp_path):
    device = walked.device(tmp_path / "device")
    use_check(device, LOOK)
    mount = tmp_path / "mnt" / "bundle"
    mount.mkdir(parents=True)
    hook = Path(shutil.copy(SCRIPTS["rauc hook"], mount))
    model = mount / "model.tar"
    whole = walked.bundle("first")["bundle.tar"]
    same = {"RAUC_SYSTEM_COMPATIBLE": "Camera v2", "RAUC_MF_COMPATIBLE": "Camera v2"}
    model.write_bytes(whole.replace(b'"counter":1', b'"counter":9'))
    assert device.run(hook, "install-check", more=same).returncode == 10
    model.write_bytes(whole)
    assert device.run(hook, "install-check", more=same).returncode == 0
    assert device.serving() is None
    image = {"RAUC_SLOT_CLASS": "model", "RAUC_IMAGE_NAME": "model.tar"}
    assert device.run(hook, "slot-install", more=image).returncode == 0
    assert device.serving() == 1

    use_check(device, POWER_CUT)
    mender = Mender(device, tmp_path / "tree")
    assert not mender.deploy(walked.bundle("third"))
    assert ("ArtifactInstall", -signal.SIGKILL) in mender.states
    assert dict(mender.states)["ArtifactRollback"] == 0
    assert device.serving() == 1
    facts = _status(device)["updates"]
    assert facts["trial"] is None
    assert facts["counter"] == facts["failed_counter"] == 3

    # what was gone back from is not taken again, whoever brings it
    use_check(device, LOOK)
    bundle = str(walked.publisher / "third.tar")
    assert device.run(SCRIPTS["swupdate"], "preinst", bundle).returncode == 0
    assert device.run(SCRIPTS["swupdate"], "postinst", bundle).returncode == 3
    assert device.run(SCRIPTS["swupdate"], "failure", bundle).returncode == 0
    assert device.serving() == 1

    # the same generation as a new bundle is; then another part of the same SWUpdate image fails
    out = Path(shutil.copytree(walked.publisher / "out", tmp_path / "out"))
    keys = [f"--key={walked.publisher / 'keys' / name}" for name in ("key-1.pem", "key-3.pem")]
    source = [str(walked.publisher / "w"), str(out), "--device-class", "camera-v2", "--tar"]
    assert main(["bundle", *source, *keys]) == 0
    bundle = str(tmp_path / "out.tar")
    assert device.run(SCRIPTS["swupdate"], "preinst", bundle).returncode == 0
    assert device.run(SCRIPTS["swupdate"], "postinst", bundle).returncode == 0
    assert device.serving() == 3
    assert device.run(SCRIPTS["swupdate"], "failure", bundle).returncode == 0
    assert device.serving() == 1

    # gone back from after its trial: for apply nothing to do, for RAUC no success
    handler = SCRIPTS["rauc handler"]
    model.write_bytes(Path(bundle).read_bytes())
    done = device.run(handler, more={"RAUC_BUNDLE_MOUNT_POINT": str(mount)})
    assert done.returncode == 3
    assert '"serves": false' in done.stdout
    assert device.serving() == 1


def _start(device: Device, name: str) -> int:
    """The ExecStart line of a service, with the device's program where /usr/bin/edge-pslora would be."""
    unit = UPDATERS / "systemd" / f"edge-pslora-{name}.service"
    line = command_line(unit, environment_file(device.folder / "update.conf"))
    assert line[0] == "/usr/bin/edge-pslora"
    return device.run(device.folder / "edge-pslora", *line[1:]).returncode
