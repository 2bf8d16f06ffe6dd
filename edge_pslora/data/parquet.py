"""Parquet files: a text column, or numbers, with a label; lists are several labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edge_pslora.data.labels import split_cell
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.parquet_open import (
    batches,
    class_names,
    longest_text,
    open_parquet,
    parquet_damaged,
    reported,
    require_pyarrow,
)
from edge_pslora.data.parquet_table import read_parquet_table
from edge_pslora.data.source import file_status, open_input, shown, unpacked_limit
from edge_pslora.data.tally import Part, Tally
from edge_pslora.data.text_rows import TEXT_KEYS, TextRows, find_shape

_TEXTS_AT_A_TIME = 256
_LONG_AT_A_TIME = 8  # where a text is longer than _LONG
_LONG = 1 << 16


def read_parquet(path: Path, options: ReadOptions) -> Part:
    """Reads a .parquet file: texts with labels (or alone) as JSON lines are read, else a table.

    Raises:
        DataError: damage, lying metadata, no such columns, too many bad rows.
        InputError: pyarrow is not installed.
    """
    require_pyarrow(path)
    with open_input(path) as stream:
        file = open_parquet(path, stream, options)
        with reported(path):
            schema = file.schema_arrow
        if len(set(schema.names)) != len(schema.names):
            raise parquet_damaged(path, "two columns of one name", "rename one of them")
        if _is_text(schema, options):
            return _read_texts(path, file, schema, options)
        return read_parquet_table(path, file, schema, options)


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
    for number, row in _texts(path, file, names, options):
        if options.task_type == "multilabel" and isinstance(row.get(shape.label or ""), str):
            row = {**row, shape.label: split_cell(row[shape.label])}  # type: ignore[dict-item,index]
        problem = rows.take(row, number)
        if problem is not None:
            tally.reject(number, f"{shown(path.name)}: row {number}", problem)
    given = None if shape.label is None else class_names(schema, shape.label)
    return rows.part(path, options, tally, unit=": row ", names=given)


def _texts(
    path: Path, file: Any, names: list[str], options: ReadOptions
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    row = size = 0
    most = unpacked_limit(file_status(path).st_size, options.max_bytes)
    for batch in batches(path, file, names, _TEXTS_AT_A_TIME):
        with reported(path):
            step = _LONG_AT_A_TIME if longest_text(path, batch) > _LONG else _TEXTS_AT_A_TIME
        for start in range(0, batch.num_rows, step):
            with reported(path):
                values = batch.slice(start, step).to_pylist()
            for value in values:
                size += sum(len(text) for text in value.values() if isinstance(text, str))
                if size > most:
                    raise parquet_damaged(
                        path, f"texts of more than {most} bytes", "split the file"
                    )
                yield row, value
                row += 1
