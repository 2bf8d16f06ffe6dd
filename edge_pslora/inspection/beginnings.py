"""The beginning of a large text file as a file of its own, so that its reader ends in time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge_pslora.data.folder import PART_NAMES, PART_SUFFIXES
from edge_pslora.data.source import file_status, open_input
from edge_pslora.errors import DataError

# A second of work for the slowest reader: tables of numbers are read at 10 to 20 MB/s.
MOST_BYTES = 8 << 20
# Formats whose rows end with the line; of others no beginning can be cut.
LINE_SUFFIXES = frozenset((".jsonl", ".ndjson", ".csv", ".tsv", ".data", ".txt"))


@dataclass(frozen=True)
class Beginning:
    """path: what to read. bytes: of the user's files; bytes_read: of these, what `path` holds."""

    path: Path
    bytes: int
    bytes_read: int


@contextmanager
def beginning(path: Path, most: int = MOST_BYTES) -> Iterator[Beginning]:
    """`path` itself where it is small enough, else a copy of the first lines of its files.

    A DataError raised inside names the user's files, not the copies.

    Raises:
        DataError: nothing there, or a file that cannot be read.
    """
    files = [path] if not path.is_dir() else _part_files(path)
    file_status(path)
    total = sum(file_status(file).st_size for file in files)
    if total <= most or not all(file.suffix.casefold() in LINE_SUFFIXES for file in files):
        yield Beginning(path, total, total)
        return
    with tempfile.TemporaryDirectory(prefix="edge-pslora-inspect-") as temporary:
        copies = Path(temporary)
        kept = sum(_copy_lines(file, copies / file.name, most // len(files)) for file in files)
        given = copies if path.is_dir() else copies / path.name
        try:
            yield Beginning(given, total, kept)
        except DataError as error:
            raise DataError(
                error.where.replace(str(given), str(path)),
                expected=error.expected,
                found=error.found,
                remedy=error.remedy,
            ) from error


def _part_files(folder: Path) -> list[Path]:
    files = [folder / (name + suffix) for name in PART_NAMES for suffix in PART_SUFFIXES]
    return [file for file in files if file.is_file()]


def _copy_lines(source: Path, copy: Path, most: int) -> int:
    """Copies whole lines, about `most` bytes of them; returns how many bytes."""
    with open_input(source) as stream:
        content = stream.read(most)
        if len(content) == most:
            content = content[: content.rfind(b"\n") + 1] or content
    copy.write_bytes(content)
    return len(content)
