"""A device for the scripts of examples/updaters: an edge-pslora that records and answers as planned,
and Mender's side of the module protocol, with power cuts.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UPDATERS = ROOT / "examples" / "updaters"
SCRIPTS = {
    "mender": UPDATERS / "mender" / "edge-pslora",
    "rauc hook": UPDATERS / "rauc" / "hook.sh",
    "rauc handler": UPDATERS / "rauc" / "handler.sh",
    "swupdate": UPDATERS / "swupdate" / "edge-pslora-model.sh",
}
SHELLS = [
    command
    for command in (["sh"], ["dash"], ["bash", "--posix"], ["busybox", "sh"])
    if shutil.which(command[0])
]
# Appends its arguments to `calls`, then does what the next line of plan.COMMAND says:
# exit code, generation that serves from then on (or -), what apply says of it, and whether the power
# goes (cut): with it goes the group of processes that the caller leads.
STAND_IN = r"""#!/bin/sh
cd "${0%/*}" || exit 99
{ printf '%s\037' "$@"; echo; } >>calls
touch "plan.$1"
read -r code number serves end <"plan.$1" || code=0 number=- serves=true end=
sed -i 1d "plan.$1"
if [ "$number" != - ]; then
    mkdir -p workspace && printf '%06d %064d\n' "$number" 0 >workspace/current
fi
[ "$end" != cut ] || kill -9 0
[ "$1" != apply ] || echo "{\"counter\": 7, \"serves\": $serves}"
exit "$code"
"""


@dataclass(frozen=True)
class Answer:
    """code: the exit code. serving: the generation that serves afterwards, None: as before. serves:
    whether apply says that it is the bundle's. cut: the power goes, so nobody hears of all that."""

    code: int = 0
    serving: int | None = None
    serves: bool = True
    cut: bool = False


@dataclass(frozen=True)
class Device:
    """folder/edge-pslora is the command; folder/workspace its workspace."""

    folder: Path

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace"

    def serve(self, number: int) -> None:
        self.workspace.mkdir(exist_ok=True)
        line = f"{number:06d} {0:064d}\n"
        (self.workspace / "current").write_text(line, encoding="ascii")

    def serving(self) -> int | None:
        path = self.workspace / "current"
        return int(path.read_text(encoding="ascii").split()[0]) if path.exists() else None

    def plan(self, command: str, *answers: Answer) -> None:
        """Whatever is not planned exits with 0 and changes nothing."""
        rows = (
            f"{a.code} {'-' if a.serving is None else a.serving} {str(a.serves).lower()}"
            f" {'cut' if a.cut else 'on'}\n"
            for a in answers
        )
        (self.folder / f"plan.{command}").write_text("".join(rows), encoding="ascii")

    def calls(self) -> list[list[str]]:
        """What edge-pslora was called with since the last call of this."""
        path = self.folder / "calls"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\037\n")
        path.unlink()
        return [line.split("\037") for line in lines if line]

    def run(
        self,
        script: Path,
        *arguments: str,
        shell: Iterable[str] = (),
        cwd: Path | None = None,
        more: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """As an updater would: nothing in the environment but a PATH and what is in `more`."""
        environment = {
            "PATH": f"{self.folder}:/usr/bin:/bin",
            "EDGE_PSLORA_LIB": str(UPDATERS),
            "EDGE_PSLORA_CONF": str(self.folder / "update.conf"),
            "EDGE_PSLORA_RUN": str(self.folder),
            **(more or {}),
        }
        return subprocess.run(
            [*shell, str(script), *arguments],
            env=environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            start_new_session=True,
        )


def make_device(folder: Path) -> Device:
    folder.mkdir(parents=True)
    command = folder / "edge-pslora"
    command.write_text(STAND_IN, encoding="ascii")
    command.chmod(0o755)
    write_settings(folder / "update.conf", folder / "workspace")
    return Device(folder)


def make_workspace(device: Device) -> None:
    """From here on there is one, as far as a script can see."""
    (device.workspace / "workspace.json").write_text("{}", encoding="ascii")


CHECK = ("--health-check", "/bin/check --now", "--health-timeout", "9s", "--health-interval", "0s")


def write_settings(path: Path, workspace: Path, **more: str) -> Path:
    """The shipped file with a device's values, so that a name which it lacks would be noticed."""
    values = {
        "WORKSPACE": str(workspace),
        "ROOT": "/etc/root.json",
        "CLASS": "cam 1",
        "HEALTH_CHECK": CHECK[1],
        "HEALTH_TIMEOUT": CHECK[3],
        "HEALTH_INTERVAL": CHECK[5],
        "FROM": str(workspace.parent / "inbox"),
        "LOCK_WAIT": "0",
        **more,
    }
    lines = []
    for line in (UPDATERS / "update.conf").read_text(encoding="utf-8").splitlines():
        name = line.partition("=")[0].removeprefix("EDGE_PSLORA_")
        if "=" in line and not line.startswith("#"):
            line = f'EDGE_PSLORA_{name}="{values.pop(name)}"'
        lines.append(line)
    assert not values, f"not in update.conf: {sorted(values)}"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def resume_call(device: Device) -> list[str]:
    """What ends an update that was cut."""
    return ["apply", str(device.workspace), *CHECK]


def apply_call(device: Device, source: str | Path) -> list[str]:
    """What a script has to call for a bundle at `source`."""
    return [
        *resume_call(device),
        *("--from", str(source), "--root", "/etc/root.json", "--device-class", "cam 1", "--json"),
    ]


def rollback_call(device: Device, number: int) -> list[str]:
    return ["rollback", str(device.workspace), "--to", str(number)]


@dataclass
class Mender:
    """The client's side: which states follow which, as its state machine has them.

    states: those that were run, each with its exit code (-9: the power went).
    """

    device: Device
    tree: Path
    script: Path = SCRIPTS["mender"]

    def __post_init__(self) -> None:
        self.states: list[tuple[str, int]] = []

    def call(self, state: str) -> str:
        """Runs one state as Mender does: two arguments, in the tree."""
        done = self.device.run(self.script, state, str(self.tree), cwd=self.tree)
        self.states.append((state, done.returncode))
        self.errors = done.stderr
        return done.stdout.strip()

    @property
    def failed(self) -> bool:
        return self.states[-1][1] != 0

    def deploy(self, payload: Mapping[str, bytes]) -> bool:
        """From the download to Cleanup; False: Mender would report a failure."""
        self.prepare(payload)
        for state in ("ArtifactInstall", "ArtifactCommit"):
            self.call(state)
            if self.failed:
                return self.go_back()
            if state == "ArtifactInstall":
                assert self.call("NeedsArtifactReboot") == "No"
        return self.clean(True)

    def prepare(self, payload: Mapping[str, bytes]) -> None:
        """Download: the module leaves the streams alone, so Mender stores them as files."""
        for name in ("header", "tmp", "streams"):
            (self.tree / name).mkdir(parents=True)
        assert self.call("ProvidePayloadFileSizes") in ("", "No")
        self.call("Download")
        assert not self.failed
        (self.tree / "streams").rmdir()
        (self.tree / "files").mkdir()
        for name, data in payload.items():
            (self.tree / "files" / name).write_bytes(data)

    def go_back(self) -> bool:
        """After a failure; a power cut in here repeats the state that it cut (LoadStateFromDb)."""
        assert self.call("SupportsRollback") == "Yes"
        for state in ("ArtifactRollback", "ArtifactFailure"):
            self.call(state)
            while self.states[-1][1] == -signal.SIGKILL:
                self.call(state)
        return self.clean(False)

    def clean(self, success: bool) -> bool:
        self.call("Cleanup")
        shutil.rmtree(self.tree)
        return success


def can(command: str) -> bool:
    return shutil.which(command) is not None


def environment_without(*names: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in names}
