"""What a run came to: one JSON line, appended durably; and the lines of a file read back."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edge_pslora.errors import DataError
from edge_pslora.workspace.durable import fsync_folder, storage_errors

Matrix = tuple[tuple[float, ...], ...]
MEASURED = ("seconds", "peak_bytes", "date", "commit", "machine")  # may differ between equal runs


@dataclass(frozen=True)
class Result:
    """matrix[i][j]: score on task j after session i; joint methods have one session. untrained: before
    any. Figures that are undefined are None (METHOD.md, "Metrics"). part: "test", or "valid", by which
    things are chosen. digest: of configuration and part. seconds: of the processor, for the sessions,
    without loading and scoring. peak_bytes: resident memory of the process.
    kept_bytes, trained: after the last session.
    """

    stream: str
    setting: str
    order: int
    tasks: tuple[str, ...]
    method: str
    seed: int
    part: str
    config: dict[str, Any]
    digest: str
    matrix: Matrix
    untrained: tuple[float, ...]
    average: float
    learning: float | None
    backward: float | None
    forward: float | None
    forgetting: float | None
    kept_bytes: int
    trained: int
    stores_samples: bool
    joint: bool
    versions: dict[str, str]
    machine: dict[str, Any]
    commit: str
    date: str
    seconds: float
    peak_bytes: int

    @property
    def key(self) -> tuple[str, str, int, str, int, str]:
        """What makes a result the same result."""
        return (self.stream, self.setting, self.order, self.method, self.seed, self.digest)

    def stable(self) -> dict[str, Any]:
        """What the same seed, data, machine and options always give."""
        return {name: value for name, value in asdict(self).items() if name not in MEASURED}


def digest_of(facts: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of a configuration's sha256."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def append(path: Path, result: Result) -> None:
    """Adds one line, which is on disk when this returns; several processes may append at once."""
    line = json.dumps(asdict(result), separators=(",", ":")) + "\n"
    with storage_errors(path.parent, path.name):
        new = not path.exists()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o644)
        try:
            data = line.encode()
            if _torn(path):  # a line that a killed run left half written ends here
                data = b"\n" + data
            os.write(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            fsync_folder(path.parent)


def _torn(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def read(path: Path) -> list[Result]:
    """All whole lines, of a file that ends in .gz too; a half-written last one of a killed run is left out.

    Raises:
        DataError: a line that is something else; a .gz that is none.
    """
    if not path.exists():
        return []
    names = {field.name for field in fields(Result)}
    found = []
    lines = _text(path).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            facts = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # no line feed after it: it was never finished
                continue
            raise _no_result(path, number, str(error)) from error
        if not isinstance(facts, dict) or facts.keys() != names:
            raise _no_result(path, number, "other fields")
        facts["matrix"] = tuple(tuple(row) for row in facts["matrix"])
        facts["tasks"], facts["untrained"] = tuple(facts["tasks"]), tuple(facts["untrained"])
        found.append(Result(**facts))
    return found


def _text(path: Path) -> str:
    if path.suffix != ".gz":
        return path.read_text(encoding="utf-8")
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            str(path),
            expected="gzip",
            found=str(error),
            remedy="compress it again, or give the lines as they are, without .gz",
        ) from error


def _no_result(path: Path, line: int, found: str) -> DataError:
    return DataError(
        f"{path}:{line}",
        expected="a line that compare or the suite wrote",
        found=found,
        remedy="remove the line, or write to another file",
    )
