"""The file `current`: which generation serves. One line, replaced by rename: never half of one.

    000007 <sha256 of generations/000007/manifest.json>

Generation 000000 with 64 zeros: nothing was published yet. A reader that finds anything else, or a
manifest with another sha256, has a damaged workspace and says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edge_pslora.errors import WorkspaceError
from edge_pslora.workspace import layout
from edge_pslora.workspace.durable import (
    fsync_folder,
    remove_leftovers,
    storage_errors,
    write_bytes,
)
from edge_pslora.workspace.reading import read_limited

_LINE = re.compile(rb"([0-9]{6,9}) ([0-9a-f]{64})\n")


@dataclass(frozen=True)
class Pointer:
    """number: 0 when nothing was published; manifest_sha256: hexadecimal."""

    number: int
    manifest_sha256: str


NOTHING = Pointer(0, "0" * 64)


def replace_pointer(workspace: Path, pointer: Pointer) -> None:
    """The one atomic step by which a generation becomes current; what killed ones left is removed.

    The generation's name is made durable before: who published it may have been killed before it came
    to that, and the pointer must not outlive what it points to.
    """
    if pointer.number:
        with storage_errors(workspace, layout.GENERATIONS):
            fsync_folder(workspace / layout.GENERATIONS)
    remove_leftovers(workspace, layout.CURRENT)
    line = f"{layout.generation_name(pointer.number)} {pointer.manifest_sha256}\n"
    write_bytes(workspace / layout.CURRENT, line.encode("ascii"))


def read_pointer(workspace: Path) -> Pointer:
    """The pointer, or a WorkspaceError that says how to set it again."""
    path = workspace / layout.CURRENT
    remedy = f"choose a generation: edge-pslora rollback {workspace} --to NUMBER"
    try:
        data = read_limited(path, 1024)
    except WorkspaceError as problem:
        raise WorkspaceError(
            str(path), expected="the pointer file", found=problem.found, remedy=remedy
        ) from problem
    match = _LINE.fullmatch(data)
    if match is None:
        raise WorkspaceError(
            str(path),
            expected="a number and a sha256",
            found=ascii(data[:40]),
            remedy=remedy,
        )
    pointer = Pointer(int(match.group(1)), match.group(2).decode("ascii"))
    if (pointer.number == 0) != (pointer == NOTHING):
        raise WorkspaceError(
            str(path), expected="a published generation", found=ascii(data[:40]), remedy=remedy
        )
    return pointer
