"""From a fresh device to a signed update, a failed health check and the way back: every command of it.

    python examples/updaters/walk.py [FOLDER]

Two folders play the publisher and the device. The publisher learns from the bundled digits and signs
with two of three keys. On the device `edge-pslora` is a program that can import neither torch nor
onnx. Its second update is properly signed, intact, and worse: the digits of that session were labelled
wrongly and its promotion was forced. The device finds out by itself.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from edge_pslora.demo_data import load_digits

HERE = Path(__file__).resolve().parent
CLASS = "camera-v2"
# what runs on the device: the command with its commands, but no torch and no onnx to import
DEVICE_PROGRAM = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnxscript", "transformers"}:
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Absent())
from edge_pslora.cli.main import main
sys.exit(main())
"""


def install(device: Path) -> None:
    """What a device is delivered with: the command, a health check, the publisher's root.json."""
    program = device / "bin" / "edge-pslora"
    program.parent.mkdir(parents=True)
    code = program.with_name("edge_pslora_device.py")
    code.write_text(DEVICE_PROGRAM, encoding="utf-8")
    python = shlex.quote(sys.executable)
    program.write_text(f'#!/bin/sh\nexec {python} {shlex.quote(str(code))} "$@"\n', "utf-8")
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

    def run(self, who: Path, *arguments: object, code: int = 0) -> str:
        """One edge-pslora command in the folder of `who`.

        Args:
            code: the exit code that has to come.
        """
        words = [str(argument) for argument in arguments]
        print(f"\n{who.name}$ {shlex.join(['edge-pslora', *words])}", flush=True)
        program = [sys.executable, "-m", "edge_pslora.cli.main"]
        if who == self.device:
            program = [str(self.device / "bin" / "edge-pslora")]
        done = subprocess.run(
            [*program, *words], cwd=who, capture_output=True, text=True, check=False
        )
        text = done.stdout + done.stderr
        print("".join(f"    {line}\n" for line in text.splitlines()), end="")
        if done.returncode:
            print(f"    exit code {done.returncode}")
        if done.returncode != code:
            sys.exit(f"exit code {code} was expected")
        return text
