"""What systemd makes of a unit file: its settings, and the command line that ExecStart= becomes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

_WORD = re.compile(r"\$\{([A-Z_]+)\}")


def settings(path: Path) -> dict[str, list[str]]:
    """Section.Key -> its values, in their order; lines that end in a backslash go on."""
    found: dict[str, list[str]] = {}
    section = ""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith(("#", ";")):
            key, _, value = line.partition("=")
            found.setdefault(f"{section}.{key}", []).append(value)
    return found


def environment_file(path: Path) -> dict[str, str]:
    """KEY=value lines; quotes around a value are taken off."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: " ".join(shlex.split(value)) for name, _, value in pairs}


def command_line(path: Path, environment: Mapping[str, str]) -> list[str]:
    """ExecStart= as argv: ${NAME} is replaced and stays one argument, whatever is in it."""
    (line,) = settings(path)["Service.ExecStart"]
    words = shlex.split(line)
    assert not any("$" in _WORD.sub("", word) for word in words), line
    return [_WORD.sub(lambda found: environment[found.group(1)], word) for word in words]
