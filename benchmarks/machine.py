"""What a figure was measured on: the machine, the date, the commit. No host or user name."""

from __future__ import annotations

import subprocess

from benchmarks.places import ROOT
from edge_pslora.compare.machine import machine, now

__all__ = ["commit", "machine", "now"]


def commit() -> str:
    """The commit that is checked out, with "-dirty" where files differ from it."""
    head = _git("rev-parse", "HEAD")
    if head is None:
        return "unknown"
    return f"{head}-dirty" if _git("status", "--porcelain") else head


def _git(*arguments: str) -> str | None:
    # --no-optional-locks: a measurement must not write to the repository
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
