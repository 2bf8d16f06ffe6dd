"""From a fresh device to a signed update, a failed health check and the way back: every command of it.

    python examples/updaters/walk.py [FOLDER]

Two folders play the publisher and the device. The publisher learns from the bundled digits and signs
with two of three keys. On the device `edge-pslora` is a program that can import neither torch nor
onnx, and nothing else of what learning needs. Its second update is properly signed, intact, and worse:
the digits of that session were labelled wrongly and its promotion was forced. The device finds out by
itself.
"""

from __future__ import annotations

import contextlib
import io
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from edge_pslora.cli.main import main as edge_pslora
from edge_pslora.demo_data import load_digits

HERE = Path(__file__).resolve().parent
CLASS = "camera-v2"
REFUSED, BAD_INPUT = 3, 4  # exit codes
# what a device that only takes updates is spared: trying to import one of them is an error there
ABSENT = ("torch", "onnx", "onnxscript", "safetensors", "jinja2", "transformers", "peft")


def install(device: Path) -> None:
    """What a device is delivered with: the command, in a Python that lacks what is ABSENT."""
    program, shadows = device / "bin" / "edge-pslora", device / "lib"
    for folder in (program.parent, shadows):
        folder.mkdir(parents=True)
    for name in ABSENT:
        text = f"raise ModuleNotFoundError(\"No module named '{name}' on this device\")\n"
        (shadows / f"{name}.py").write_text(text, encoding="utf-8")
    # in the environment, so that the process in which a new model first runs is a device's as well
    python, lacking = shlex.quote(sys.executable), shlex.quote(str(shadows))
    command = f'PYTHONPATH={lacking} exec {python} -P -m edge_pslora.cli.main "$@"'
    program.write_text(f"#!/bin/sh\n{command}\n", encoding="utf-8")
    program.chmod(0o755)


def samples(path: Path, digits: tuple[int, ...], part: int, n: int, turned: bool = False) -> Path:
    """n digits as an .npz file; turned: each is called by the name of the next one."""
    images, labels = load_digits()
    rows = np.flatnonzero(np.isin(labels, digits))
    rows = rows[rows % 3 == part][:n]
    names = labels[rows]
    if turned:
        names = np.roll(digits, -1)[np.searchsorted(digits, names)]
    np.savez(path, x=images[rows].reshape(len(rows), -1).astype(np.float32), y=names)
    return path


class Walk:
    """Runs commands as publisher or device, prints them, and holds them to their exit codes."""

    def __init__(self, folder: Path) -> None:
        self.publisher, self.device = folder / "publisher", folder / "device"
        self.publisher.mkdir()
        install(self.device)

    def run(self, who: Path, *arguments: object, code: int = 0) -> None:
        """One edge-pslora command in the folder of `who`.

        Args:
            code: the exit code that has to come.
        """
        words = [str(argument) for argument in arguments]
        print(f"\n{who.name}$ {shlex.join(['edge-pslora', *words])}", flush=True)
        found, text = self._on_device(words) if who == self.device else self._at_publisher(words)
        print("".join(f"    {line}\n" for line in text.splitlines()), end="")
        if found:
            print(f"    exit code {found}", flush=True)
        if found != code:
            sys.exit(f"exit code {code} was expected")

    def _on_device(self, words: list[str]) -> tuple[int, str]:
        program = self.device / "bin" / "edge-pslora"
        done = subprocess.run(
            [str(program), *words], cwd=self.device, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    def _at_publisher(self, words: list[str]) -> tuple[int, str]:
        """The same command as a function: torch is loaded once for all of them."""
        output = io.StringIO()
        with (
            contextlib.chdir(self.publisher),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
        ):
            code = edge_pslora(words)
        return code, output.getvalue()


def deliver(bundle: Path, inbox: Path) -> None:
    """Copies a bundle to where a device looks for it: timestamp.json last, so that it is never there
    without the files that it leads to.
    """
    last = Path("metadata", "timestamp.json")
    names = [path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file()]
    for name in sorted(names, key=lambda name: name == last):
        (inbox / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / name, inbox / name)


def serving(workspace: Path) -> Path:
    """The model.onnx that `current` leads to."""
    generation, _ = (workspace / "current").read_text(encoding="ascii").split()
    return workspace / "generations" / generation / "model.onnx"


def main(folder: Path) -> None:
    walk = Walk(folder)
    publisher, device = walk.publisher, walk.device
    keys = ("--key", "keys/key-1.pem", "--key", "keys/key-2.pem")

    print("# The publisher learns five digits, and signs the model with one of the three keys.")
    learned = samples(publisher / "first.npz", (0, 1, 2, 3, 4), part=0, n=120)
    walk.run(publisher, "adapt", learned, "--model", "auto", "--workspace", "w", "--quiet")
    walk.run(publisher, "keys", "init", "keys")
    shutil.copyfile(publisher / "keys" / "root.json", device / "root.json")
    walk.run(
        *(publisher, "bundle", "w", "out", "--root", "keys/root.json", *keys[:2]),
        *("--kind", "full", "--with-base", "--device-class", CLASS, "--tar"),
    )
    deliver(publisher / "out", device / "inbox")

    print("\n# One signature is not enough for a device; the other holder adds hers.")
    samples(device / "probe.npz", (0, 1, 2, 3, 4), part=2, n=100)
    check = (sys.executable, HERE / "health_check.py", "probe.npz", "0.8")
    apply = (
        *("apply", "workspace", "--from", "inbox", "--root", "root.json", "--device-class", CLASS),
        *("--health-check", shlex.join(map(str, check)), "--health-interval", "0s"),
    )
    walk.run(device, *apply, code=BAD_INPUT)
    walk.run(publisher, "keys", "sign", "out", "--key", "keys/key-2.pem", "--tar")
    shutil.copyfile(publisher / "out.tar", publisher / "first.tar")
    deliver(publisher / "out", device / "inbox")
    walk.run(device, *apply)
    walk.run(device, "status", "workspace", "--verify")

    print(
        "\n# A session with wrong labels, promoted by force, properly signed: the device notices."
    )
    wrong = samples(publisher / "wrong.npz", (0, 1, 2, 3, 4), part=1, n=300, turned=True)
    walk.run(publisher, "adapt", wrong, "--workspace", "w", "--force", "--quiet")
    walk.run(publisher, "bundle", "w", "out", *keys, "--device-class", CLASS, "--tar")
    shutil.copyfile(publisher / "out.tar", publisher / "second.tar")
    deliver(publisher / "out", device / "inbox")
    before = serving(device / "workspace")
    walk.run(device, *apply, code=REFUSED)
    assert serving(device / "workspace") == before
    walk.run(device, "status", "workspace", "--verify")

    print("\n# The same bundle once more is refused at once.")
    walk.run(device, *apply, code=REFUSED)

    print("\n# The publisher goes back, learns five more digits, and ships what has changed.")
    walk.run(publisher, "rollback", "w", "--to", 1)
    more = samples(publisher / "more.npz", (5, 6, 7, 8, 9), part=0, n=120)
    walk.run(publisher, "adapt", more, "--workspace", "w", "--quiet")
    walk.run(publisher, "bundle", "w", "out", *keys, "--device-class", CLASS, "--tar")
    shutil.copyfile(publisher / "out.tar", publisher / "third.tar")
    deliver(publisher / "out", device / "inbox")
    walk.run(device, *apply)
    walk.run(device, "status", "workspace", "--verify")
    found, made = serving(device / "workspace"), serving(publisher / "w")
    assert found.read_bytes() == made.read_bytes()
    print(f"\nThe device serves {found.relative_to(folder)}, bit for bit what the publisher made.")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]).resolve())
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary).resolve())
