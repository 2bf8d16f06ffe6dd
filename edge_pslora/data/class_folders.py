"""A folder with one sub-folder of files per class: images, recordings, whatever decodes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_pslora.data.labels import label_problem
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.source import cannot_open, shown
from edge_pslora.data.tally import Part, Tally
from edge_pslora.data.types import Modality, Samples
from edge_pslora.errors import DataError

_MAX_DEPTH = 16
_LITTER = frozenset(("thumbs.db", "desktop.ini"))


@dataclass(frozen=True)
class FileKind:
    """One kind of file that class folders may hold.

    suffixes: in lower case. one, many: what such files are called, with article. example: a name.
    require: raises InputError where the library that decodes them is missing, given the root.
    problem: why a file cannot be used, or None; it decodes the file once in full.
    """

    modality: Modality
    suffixes: frozenset[str]
    one: str
    many: str
    example: str
    require: Callable[[Path], None]
    problem: Callable[[Path, ReadOptions], str | None]

    def named(self, path: Path) -> bool:
        """Whether `path` is of this kind by its name."""
        return path.suffix.casefold() in self.suffixes


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The visible entries of a folder, by name."""
    try:
        with os.scandir(folder) as found:
            return sorted(
                (e for e in found if not e.name.startswith((".", "__MACOSX"))),
                key=lambda entry: entry.name,
            )
    except (OSError, ValueError) as error:
        raise cannot_open(folder, error) from error


def class_folders(root: Path) -> list[Path]:
    """Sub-folders of `root`, links to folders included, by name."""
    # isdir, unlike DirEntry.is_dir, says no to a link that leads to itself.
    return [Path(entry.path) for entry in _entries(root) if os.path.isdir(entry.path)]  # noqa: PTH112


def _escapes(path: Path, root: Path) -> str | None:
    """Why the symbolic link `path` may not be followed, or None. `root` is resolved."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return "a symbolic link to nothing"
    return None if target.is_relative_to(root) else "a symbolic link that leaves the folder"


def _files(folder: Path, root: Path, depth: int = 0) -> Iterator[tuple[Path, str | None]]:
    """Every file below `folder` in order, with the reason where it must not be opened."""
    if depth > _MAX_DEPTH:
        yield folder, "folders nested too deeply"
        return
    try:
        entries = _entries(folder)
    except DataError as error:
        yield folder, error.found
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.is_symlink() and (problem := _escapes(path, root)):
            yield path, problem
        elif entry.is_symlink() and path.is_dir():
            # Following it could go round in circles.
            yield path, "a symbolic link to a folder"
        elif entry.is_dir(follow_symlinks=False):
            yield from _files(path, root, depth + 1)
        elif entry.name.casefold() not in _LITTER:
            yield path, None


def names_in(root: Path) -> Iterator[Path]:
    """Every file that lies in a class folder of `root`, unopened, links out of it left out."""
    real_root = root.resolve()
    for folder in class_folders(root):
        if not folder.is_symlink():
            yield from (path for path, reason in _files(folder, real_root) if reason is None)


def read_class_folders(root: Path, options: ReadOptions, kind: FileKind) -> Part:
    """Reads root/<class>/**/<file>; the name of the class folder is the label.

    Raises:
        DataError: no class folder with such a file, or too many files that are none.
        InputError: what decodes them is not installed.
    """
    kind.require(root)
    source, tally = shown(root), Tally(shown(root), options)
    if options.task_type == "regression":
        raise DataError(
            source,
            expected="numbers as labels for regression",
            found=f"folders of {kind.many}",
            remedy="leave --task-type out",
        )
    real_root = root.resolve()
    paths: list[Path] = []
    labels: list[str] = []
    position = seen = 0  # files so far, and those that are of the kind by their name
    for entry in _entries(root):
        path = Path(entry.path)
        if kind.named(path) and not entry.is_dir(follow_symlinks=False):
            tally.reject(position, shown(entry.name), f"{kind.one} outside the class folders")
    for folder in class_folders(root):
        problem = label_problem(folder.name)
        if problem is None and folder.is_symlink():
            problem = _escapes(folder, real_root) or "a symbolic link to a folder"
        if problem is not None:
            tally.reject(position, shown(folder.name), problem)
            continue
        for path, reason in _files(folder, real_root):
            position += 1
            seen += kind.named(path)
            reason = reason or _other_kind(path, kind) or kind.problem(path, options)
            if reason is None:
                paths.append(path)
                labels.append(folder.name.strip())
            else:
                tally.reject(position, shown(path.relative_to(root)), reason)
    if not seen:
        raise DataError(
            source,
            expected=f"one folder of {kind.many} per class",
            found=f"no {kind.one.split()[-1]}",
            remedy=f"lay it out as FOLDER/class/{kind.example}",
        )
    rejected = tally.close(len(paths))
    samples = Samples(kind.modality, "classification", paths, np.array(labels, dtype=np.str_))
    return Part(samples, rejected)


def _other_kind(path: Path, kind: FileKind) -> str | None:
    if kind.named(path):
        return None
    return f"not {kind.one} by its name ({shown(path.suffix, 20) or 'no suffix'})"
