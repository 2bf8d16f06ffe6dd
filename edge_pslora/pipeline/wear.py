"""What a session writes: counted, and kept down where it is its own to choose."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# once checkpoints have written as much as the session will publish, there is one in so many seconds
PAUSE = 60.0


def written_bytes() -> int | None:
    """Bytes that this process has given to write calls so far; None: the system does not count them."""
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    counts = dict(line.split(": ") for line in lines)
    return int(counts["wchar"]) if "wchar" in counts else None


@dataclass
class CheckpointWear:
    """When a checkpoint is worth its writing. path: the file. allowed: bytes before they become rare."""

    path: Path
    allowed: int
    clock: Callable[[], float] = time.monotonic
    spent: int = 0
    _last: float = field(default=float("-inf"))

    def due(self) -> bool:
        """Asked where a checkpoint could be taken, and taken at its word: what it allows is counted."""
        size = self.path.stat().st_size if self.path.exists() else 0
        now = self.clock()
        if self.spent + size > self.allowed and now < self._last + PAUSE:
            return False
        self.spent += size
        self._last = now
        return True


def folder_bytes(folder: Path) -> int:
    """The files below `folder`; a name that goes meanwhile counts nothing."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
