"""Folders of many files that make one part: recordings of sensors, and plain text."""

from __future__ import annotations

import os
from pathlib import Path

from edge_pslora.data.options import ReadOptions
from edge_pslora.data.prose import PROSE_SUFFIXES
from edge_pslora.data.readings import TABLE_SUFFIXES
from edge_pslora.data.source import cannot_open, shown
from edge_pslora.errors import DataError

_MAX_DEPTH = 8
_NOT_TEXT = frozenset(("labels.json", "readme.md", "license.txt", "license.md"))


def files_below(root: Path, depth: int = _MAX_DEPTH) -> list[Path]:
    """Visible regular files in order; links are not followed, so nothing outside is read."""
    found: list[Path] = []
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise cannot_open(root, error) from error
    for entry in entries:
        if entry.name.startswith((".", "__MACOSX")):
            continue
        if entry.is_file(follow_symlinks=False):
            found.append(Path(entry.path))
        elif entry.is_dir(follow_symlinks=False) and depth > 0:
            found += files_below(Path(entry.path), depth - 1)
    return found


def recording_files(root: Path) -> list[tuple[Path, str | None]]:
    """The tables below `root`, each with the name of the top folder it lies in.

    Raises:
        DataError: there is none.
    """
    files = [f for f in files_below(root) if f.suffix.casefold() in TABLE_SUFFIXES]
    if not files:
        raise DataError(
            shown(root),
            expected="recordings, one .csv file for each",
            found="no such file",
            remedy="lay them out as FOLDER/file.csv or FOLDER/class/file.csv",
        )
    inside = [file.relative_to(root).parts for file in files]
    return [
        (file, parts[0] if len(parts) > 1 else None)
        for file, parts in zip(files, inside, strict=True)
    ]


def prose_files(root: Path, options: ReadOptions) -> list[Path]:
    """The .txt and .md files of a folder that holds nothing else; none where another task is asked for.

    Under --task-type language all of them below the folder, whatever lies beside them.
    """
    if options.task_type not in (None, "language") or options.window_seconds is not None:
        return []
    asked = options.task_type == "language"
    files = files_below(root, _MAX_DEPTH if asked else 1)
    texts = [f for f in files if f.suffix.casefold() in PROSE_SUFFIXES]
    if asked:
        return texts
    texts = [f for f in texts if f.parent == root]
    others = [f for f in files if f not in texts and f.name.casefold() not in _NOT_TEXT]
    return [] if others else texts
