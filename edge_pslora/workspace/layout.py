"""Names of the files and folders of a workspace (DESIGN.md, "Workspace"). It opens none."""

from __future__ import annotations

import re
from pathlib import Path

FORMAT_VERSION = 1

WORKSPACE_FILE = "workspace.json"
CURRENT = "current"
LOCK = "lock"
BASE = "base"
GENERATIONS = "generations"
STAGING = "staging"
UPDATES = "updates"

# inside base/
SOURCE = "source.json"
MODEL = "model.safetensors"

# inside generations/000007/
MANIFEST = "manifest.json"
ADAPTER = "adapter"
HISTORY = "history.safetensors"
HEAD = "head.safetensors"
ANCHOR = "anchor.safetensors"
ONNX = "model.onnx"
ONNX_DATA = "model.onnx_data"
REPORT = "report.html"
CARD = "README.md"

# inside staging/
STAGED_BASE = "base"
REFUSED = "refused"
TRASH = "trash"
RUN = "run.json"

# inside updates/: which signed updates this device trusts, and how far it got with them
TRUSTED = "trusted"
UPDATE_STATE = "state.json"

ROOT_NAMES = frozenset({WORKSPACE_FILE, CURRENT, LOCK, BASE, GENERATIONS, STAGING, UPDATES})

_GENERATION = re.compile(r"[0-9]{6,9}")
_FILE_NAME = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}(/[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}){0,3}"
)


def generation_name(number: int) -> str:
    """7 -> '000007'."""
    return f"{number:06d}"


def parse_generation_name(name: str) -> int | None:
    """'000007' -> 7; None for anything that generation_name would not write."""
    if not _GENERATION.fullmatch(name):
        return None
    number = int(name)
    return number if number > 0 and generation_name(number) == name else None


def generation_folder(workspace: Path, number: int) -> Path:
    return workspace / GENERATIONS / generation_name(number)


def staging_folder(workspace: Path, number: int) -> Path:
    return workspace / STAGING / generation_name(number)


def scratch_folder(staged: Path) -> Path:
    """Beside staging/000007: run.json and whatever a resumed run needs; never published."""
    return staged.with_name(staged.name + ".run")


def is_safe_file_name(name: str) -> bool:
    """A relative name with '/' between at most four parts; no '..', no hidden or absolute names."""
    return _FILE_NAME.fullmatch(name) is not None and name != MANIFEST
