"""Running `edge-pslora` as a process, as a device would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_pslora.errors import EdgePsloraError

REFUSED = 3  # the gate: the old model still serves, and the stream goes on


class CommandError(EdgePsloraError):
    """`edge-pslora` ended with an error; its exit code and its sentence."""

    def __init__(self, arguments: Sequence[str], code: int, message: str) -> None:
        super().__init__(
            "edge-pslora " + " ".join(arguments),
            expected="exit code 0",
            found=f"{code}: {message}",
            remedy="run it by hand with --debug",
        )


def edge_pslora(
    arguments: Sequence[str], imports: Sequence[Path] = (), allowed: Sequence[int] = (0,)
) -> dict[str, Any]:
    """The JSON object that the command prints with --json.

    imports: folders put in front of PYTHONPATH.

    Raises:
        CommandError: an exit code that is not allowed, or output that is no JSON object.
    """
    before = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([*map(str, imports), *([before] if before else [])])
    done = subprocess.run(
        [sys.executable, "-m", "edge_pslora.cli.main", *arguments, "--json"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        facts = json.loads(done.stdout)
    except ValueError:
        raise CommandError(arguments, done.returncode, done.stderr[-300:]) from None
    # a session that the gate refused has its figures; an export that is not what torch computes is an error
    if done.returncode not in allowed or not isinstance(facts, dict) or "error" in facts:
        raise CommandError(arguments, done.returncode, str(facts.get("message", facts)))
    return facts
