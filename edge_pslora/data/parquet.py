"""Parquet files, in batches: a text column, or numbers, with a label; lists are several labels."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edge_pslora.data.columns import Columns, columns_of
from edge_pslora.data.label_column import LabelColumn, RawLabel
from edge_pslora.data.label_names import names_for
from edge_pslora.data.labels import FLOAT32_MAX, joined_labels, label_problem, resolve, split_cell
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.source import magic_name, open_input, shown
from edge_pslora.data.spool import Numbers, take_rows
from edge_pslora.data.tally import Part, Tally
from edge_pslora.data.text_rows import TEXT_KEYS, TextRows, find_shape
from edge_pslora.data.types import Samples
from edge_pslora.errors import DataError, InputError

MAX_COLUMNS = 10_000
MAX_VALUE_BYTES = 1 << 20  # of one text, as of one line of a text file
_THRIFT_BYTES = 16 << 20  # of the file's metadata
_HEAD_ROWS = 50
_NUMBERS_AT_A_TIME = 1 << 18
_TEXTS_AT_A_TIME = 256


def _require_pyarrow(path: Path) -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise InputError(
            shown(path),
            expected="pyarrow, which reads Parquet files",
            found="it is not installed",
            remedy="run: pip install 'edge-pslora[parquet]'",
        ) from error


def _damaged(path: Path, found: str, remedy: str = "copy or write it again") -> DataError:
    return DataError(shown(path), expected="an undamaged Parquet file", found=found, remedy=remedy)


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """What pyarrow raises on damaged files, as a DataError."""
    import pyarrow

    try:
        yield
    except (
        pyarrow.ArrowException,
        OSError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        MemoryError,
    ) as error:
        raise _damaged(path, shown(str(error), 120) or type(error).__name__) from error


def _check_claims(path: Path, metadata: Any, size: int, options: ReadOptions) -> None:
    """Holds what the file says of itself against its size and the limits before anything is decoded."""
    if metadata.num_columns > MAX_COLUMNS:
        raise _damaged(path, f"{metadata.num_columns} columns", f"keep at most {MAX_COLUMNS}")
    total = rows = 0
    for group in range(metadata.num_row_groups):
        about = metadata.row_group(group)
        rows += about.num_rows
        for place in range(about.num_columns):
            column = about.column(place)
            if not 0 <= column.total_compressed_size <= size:
                found = f"a column of {column.total_compressed_size} bytes in {size}"
                raise _damaged(path, found)
            total += max(0, column.total_uncompressed_size)
    # a dictionary can stand for any number of equal rows, but a row takes memory here
    if rows != metadata.num_rows or not 0 <= rows * 4 <= options.max_bytes:
        raise _damaged(path, f"{metadata.num_rows} rows said, {rows} in its parts")
    if total > options.max_bytes:
        raise DataError(
            shown(path),
            expected=f"at most {options.max_bytes} bytes",
            found=f"{total} bytes once unpacked",
            remedy="split the file, or raise max_bytes",
        )


def _open(path: Path, stream: BinaryIO, options: ReadOptions) -> Any:
    """The pyarrow ParquetFile, its claims checked."""
    import pyarrow as pa
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
    stream.seek(0)
    with _reported(path):
        limits: dict[str, Any] = {
            "thrift_string_size_limit": _THRIFT_BYTES,
            "thrift_container_size_limit": _THRIFT_BYTES // 16,
            "page_checksum_verification": True,
            "pre_buffer": False,
        }
        file = pq.ParquetFile(stream, **limits)
        _check_claims(path, file.metadata, size, options)
        # as a dictionary, a text that comes a million times is there once
        texts = [
            field.name
            for field in file.schema_arrow
            if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        ]
        stream.seek(0)
        return pq.ParquetFile(stream, read_dictionary=texts, **limits)


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
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


def _batches(path: Path, file: Any, names: list[str], at_a_time: int) -> Iterator[Any]:
    batches = file.iter_batches(batch_size=at_a_time, columns=names, use_threads=False)
    while True:
        with _reported(path):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _check_texts(path: Path, batch: Any) -> None:
    """No text in a batch may be longer than a line may be; looked at before any is made a string."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        values = column.dictionary if pa.types.is_dictionary(column.type) else column
        while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            values = values.flatten()
        if pa.types.is_dictionary(values.type):
            values = values.dictionary
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            longest = pc.max(pc.binary_length(values)).as_py() or 0
            if longest > MAX_VALUE_BYTES:
                raise _damaged(
                    path,
                    f"a text of {longest} bytes in {shown(name, 40)!r}",
                    f"keep texts under {MAX_VALUE_BYTES} bytes",
                )


def _texts(path: Path, file: Any, names: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    row = 0
    for batch in _batches(path, file, names, _TEXTS_AT_A_TIME):
        with _reported(path):
            _check_texts(path, batch)
            values = batch.to_pylist()
        for value in values:
            yield row, value
            row += 1


def read_parquet(path: Path, options: ReadOptions) -> Part:
    """Reads a .parquet file: texts with labels (or alone) as JSON lines are read, else a table.

    Raises:
        DataError: damage, lying metadata, no such columns, too many bad rows.
        InputError: pyarrow is not installed.
    """
    _require_pyarrow(path)
    with open_input(path) as stream:
        file = _open(path, stream, options)
        with _reported(path):
            schema = file.schema_arrow
        if len(set(schema.names)) != len(schema.names):
            raise _damaged(path, "two columns of one name", "rename one of them")
        if _is_text(schema, options):
            return _read_texts(path, file, schema, options)
        return _read_table(path, file, schema, options)


def _is_text(schema: Any, options: ReadOptions) -> bool:
    if options.text_column is not None or options.task_type == "language":
        return True
    import pyarrow.types as types

    words = {f.name for f in schema if not types.is_primitive(f.type)} - {options.label_column}
    return any(set(keys) <= words for keys in TEXT_KEYS)


def _read_texts(path: Path, file: Any, schema: Any, options: ReadOptions) -> Part:
    import pyarrow.types as types

    lists = {f.name for f in schema if types.is_list(f.type) or types.is_large_list(f.type)}
    first = {name: [] if name in lists else "" for name in schema.names}
    shape = find_shape([first], options)
    wanted = [*shape.texts, *([shape.label] if shape.label else ())]
    names = [name for name in wanted if name in first]
    rows, tally = TextRows(shape, first_keys=tuple(schema.names)), Tally(shown(path), options)
    if len(names) < len(wanted):
        rows.objects, rows.absent = 1, dict.fromkeys(set(wanted) - set(names), 1)
        rows.require_keys(path)
    for number, row in _texts(path, file, names):
        if options.task_type == "multilabel" and isinstance(row.get(shape.label or ""), str):
            row = {**row, shape.label: split_cell(row[shape.label])}  # type: ignore[dict-item,index]
        problem = rows.take(row, number)
        if problem is not None:
            tally.reject(number, f"{shown(path.name)}: row {number}", problem)
    given = None if shape.label is None else _class_names(schema, shape.label)
    return rows.part(path, options, tally, unit=": row ", names=given)


def _read_table(path: Path, file: Any, schema: Any, options: ReadOptions) -> Part:
    import pyarrow.types as types

    columns = columns_of(schema.names, options, shown(path))
    assert columns.label is not None
    for name in columns.feature_names:
        kind = schema.field(name).type
        if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
            raise DataError(
                shown(path),
                expected=f"numbers in the feature column {shown(name, 60)!r}",
                found=f"values of type {shown(str(kind), 60)}",
                remedy=f"encode it, or --ignore-columns {shown(name, 60)}; if it is the label: "
                "--label-column",
            )
    label_name = columns.names[columns.label]
    kind = schema.field(label_name).type
    many = options.task_type == "multilabel" or types.is_list(kind) or types.is_large_list(kind)
    table, tally = _Table(columns, many, options), Tally(shown(path), options)
    at_a_time = max(1, _NUMBERS_AT_A_TIME // len(columns.names))
    at_a_time = min(at_a_time, _TEXTS_AT_A_TIME) if types.is_nested(kind) else at_a_time
    for batch in _batches(path, file, [*columns.feature_names, label_name], at_a_time):
        with _reported(path):
            _check_texts(path, batch)
            features = _floats(batch, columns.feature_names)
            labels = batch.column(batch.schema.get_field_index(label_name)).to_pylist()
        for number, problem in table.take(features, labels):
            tally.reject(number, f"{shown(path.name)}: row {number}", problem)
    return table.part(path, schema, tally, table=not types.is_nested(kind))


def _floats(batch: Any, names: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """float64 [rows, F]; NaN where there is no value."""
    import pyarrow as pa

    found = np.empty((batch.num_rows, len(names)))
    for place, name in enumerate(names):
        column = batch.column(batch.schema.get_field_index(name))
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.int8())
        found[:, place] = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return found


class _Table:
    """The good rows of a table so far."""

    def __init__(self, columns: Columns, many: bool, options: ReadOptions) -> None:
        self.columns, self.many, self.options = columns, many, options
        self.values, self.labels = Numbers(), LabelColumn()
        self.rows: array[int] = array("q")
        self.seen = 0

    def take(
        self, features: npt.NDArray[np.float64], labels: list[Any]
    ) -> Iterator[tuple[int, str]]:
        """Adds rows; yields number and reason of those that cannot be used."""
        for code in self.options.missing:
            features[features == code] = np.nan
        finite = ~np.any(np.abs(features) > FLOAT32_MAX, axis=1)
        good: list[int] = []
        for place, value in enumerate(labels):
            label, problem = self._label(value)
            if problem is None and not finite[place]:
                problem = "a number that is not finite, or beyond 32 bits"
            if problem is None:
                good.append(place)
                self.labels.append(label)
                self.rows.append(self.seen + place)
            else:
                yield self.seen + place, problem
        self.values.extend(features[good].astype(np.float32).ravel().tolist())
        self.seen += len(labels)

    def _label(self, value: Any) -> tuple[RawLabel, str | None]:
        if self.many:
            cell = split_cell(value) if isinstance(value, str) else value
            joined = joined_labels(cell)
            return joined or "", None if joined is not None else "labels that cannot be used"
        if value is None:
            return "", "no label"
        if not isinstance(value, str | int | float):
            return "", "a label that is neither text nor a number"
        if value in self.options.missing:
            return "", "no label"
        return value, label_problem(value)

    def part(self, path: Path, schema: Any, tally: Tally, *, table: bool) -> Part:
        columns, options = self.columns, self.options
        if not len(self.labels):
            raise tally.no_rows()
        if self.many:
            options = replace(options, task_type="multilabel")
        label = columns.names[columns.label or 0]
        names = None if self.many else _class_names(schema, label)
        names = names or names_for(self.labels, options, path)
        targets = resolve(self.labels, options, shown(path), table=table, names=names)
        for position, reason in targets.dropped:
            row = self.rows[position]
            tally.reject(row, f"{shown(path.name)}: row {row}", reason)
        inputs = take_rows(self.values.rows(len(columns.features)), targets.kept)
        samples = Samples("table", targets.task_type, inputs, targets.values, columns.feature_names)
        note = columns.note + ("" if names is None else ", with the names kept beside it")
        return Part(samples, tally.close(len(samples)), (note,))
