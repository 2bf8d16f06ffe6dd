"""Numbers in a Parquet file with a label column."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_pslora.data.columns import Columns, columns_of
from edge_pslora.data.label_column import LabelColumn, RawLabel
from edge_pslora.data.label_names import names_for
from edge_pslora.data.labels import FLOAT32_MAX, joined_labels, label_problem, resolve, split_cell
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.parquet_open import batches, class_names, longest_text, reported
from edge_pslora.data.source import shown
from edge_pslora.data.spool import Numbers, take_rows
from edge_pslora.data.tally import Part, Tally
from edge_pslora.data.types import Samples
from edge_pslora.errors import DataError

_NUMBERS_AT_A_TIME = 1 << 18
_LABELS_AT_A_TIME = 256  # where a label is a list


def read_parquet_table(path: Path, file: Any, schema: Any, options: ReadOptions) -> Part:
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
    at_a_time = min(at_a_time, _LABELS_AT_A_TIME) if types.is_nested(kind) else at_a_time
    for batch in batches(path, file, [*columns.feature_names, label_name], at_a_time):
        with reported(path):
            longest_text(path, batch)
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
        names = None if self.many else class_names(schema, label)
        names = names or names_for(self.labels, options, path)
        targets = resolve(self.labels, options, shown(path), table=table, names=names)
        for position, reason in targets.dropped:
            row = self.rows[position]
            tally.reject(row, f"{shown(path.name)}: row {row}", reason)
        inputs = take_rows(self.values.rows(len(columns.features)), targets.kept)
        samples = Samples("table", targets.task_type, inputs, targets.values, columns.feature_names)
        note = columns.note + ("" if names is None else ", with the names kept beside it")
        return Part(samples, tally.close(len(samples)), (note,))
