"""Opening a Parquet file that someone else wrote, and reading it in batches."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from edge_pslora.data import parquet_check
from edge_pslora.data.labels import label_problem
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.parquet_check import OPTIONS, parquet_errors, text_columns
from edge_pslora.data.source import magic_name, shown, unpacked_limit
from edge_pslora.errors import DataError, InputError

MAX_COLUMNS = 10_000
_ROW_BYTES = 40  # that a row takes here beside its numbers: its label
MAX_VALUE_BYTES = 1 << 20  # of one text, as of one line of a text file


def require_pyarrow(path: Path) -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise InputError(
            shown(path),
            expected="pyarrow, which reads Parquet files",
            found="it is not installed",
            remedy="run: pip install 'edge-pslora[parquet]'",
        ) from error


def parquet_damaged(path: Path, found: str, remedy: str = "copy or write it again") -> DataError:
    return DataError(shown(path), expected="an undamaged Parquet file", found=found, remedy=remedy)


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """What pyarrow raises on damaged files, as a DataError."""
    try:
        yield
    except parquet_errors() as error:
        raise parquet_damaged(path, shown(str(error), 120) or type(error).__name__) from error


def _check_claims(path: Path, metadata: Any, size: int, options: ReadOptions) -> None:
    """Holds what the file says of itself against its size and the limits before anything is decoded."""
    if metadata.num_columns > MAX_COLUMNS:
        raise parquet_damaged(
            path, f"{metadata.num_columns} columns", f"keep at most {MAX_COLUMNS}"
        )
    most = unpacked_limit(size, options.max_bytes)
    total = rows = 0
    for group in range(metadata.num_row_groups):
        about = metadata.row_group(group)
        rows += about.num_rows
        for place in range(about.num_columns):
            column = about.column(place)
            if not 0 <= column.total_compressed_size <= size:
                found = f"a column of {column.total_compressed_size} bytes in {size}"
                raise parquet_damaged(path, found)
            total += max(0, column.total_uncompressed_size)
    if rows != metadata.num_rows or rows < 0:
        raise parquet_damaged(path, f"{metadata.num_rows} rows said, {rows} in its parts")
    # a dictionary can stand for any number of equal rows, but a row takes memory here
    total = max(total, rows * (metadata.num_columns * 4 + _ROW_BYTES))
    if total > most:
        raise DataError(
            shown(path),
            expected=f"at most {most} bytes",
            found=f"{total} bytes once unpacked, from {size}",
            remedy="split the file, or raise max_bytes",
        )


def open_parquet(path: Path, stream: BinaryIO, options: ReadOptions) -> Any:
    """The pyarrow ParquetFile, its claims checked."""
    import pyarrow.parquet as pq

    size = stream.seek(0, 2)
    stream.seek(0)
    head = stream.read(16)
    if not head.startswith(b"PAR1"):
        raise DataError(
            shown(path),
            expected="a Parquet file",
            found=magic_name(head) or "another kind of file",
            remedy="give the file its right name",
        )
    _require_sound(path, stream, size)
    stream.seek(0)
    with reported(path):
        file = pq.ParquetFile(stream, **OPTIONS)
        _check_claims(path, file.metadata, size, options)
        stream.seek(0)
        return pq.ParquetFile(stream, read_dictionary=text_columns(file.schema_arrow), **OPTIONS)


def _require_sound(path: Path, stream: BinaryIO, size: int) -> None:
    """Has another process read the file first; see parquet_check.py."""
    stream.seek(0)
    try:
        done = subprocess.run(
            [sys.executable, "-P", parquet_check.__file__],
            stdin=stream,
            capture_output=True,
            timeout=60 + size / 1e6,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise parquet_damaged(path, "data that takes for ever to unpack") from error
    if done.returncode == 1 and done.stdout:
        raise parquet_damaged(path, shown(done.stdout.decode("utf-8", "replace"), 160))
    if done.returncode:
        raise parquet_damaged(path, f"damage that ends its reader (code {done.returncode})")


def class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """The names that the Hugging Face `datasets` library keeps for the label column."""
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = info["info"]["features"][label]["names"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    good = isinstance(names, list) and names and len(set(map(str, names))) == len(names)
    if not good or not all(isinstance(n, str) and not label_problem(n) for n in names):
        return None
    return tuple(name.strip() for name in names)


def batches(path: Path, file: Any, names: list[str], at_a_time: int) -> Iterator[Any]:
    batches = file.iter_batches(batch_size=at_a_time, columns=names, use_threads=False)
    while True:
        with reported(path):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def longest_text(path: Path, batch: Any) -> int:
    """Bytes of the longest text of a batch, looked at before any is made a string.

    Raises:
        DataError: it is longer than a line of a text file may be.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    most = 0
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        values = column.dictionary if pa.types.is_dictionary(column.type) else column
        while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            values = values.flatten()
        if pa.types.is_dictionary(values.type):
            values = values.dictionary
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            longest = pc.max(pc.binary_length(values)).as_py() or 0
            most = max(most, longest)
            if longest > MAX_VALUE_BYTES:
                raise parquet_damaged(
                    path,
                    f"a text of {longest} bytes in {shown(name, 40)!r}",
                    f"keep texts under {MAX_VALUE_BYTES} bytes",
                )
    return most
