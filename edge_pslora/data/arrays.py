"""From arrays x (N samples) and y (N labels) to samples, block by block."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from edge_pslora.data.label_column import LabelColumn, RawLabel
from edge_pslora.data.label_names import label_names, names_for
from edge_pslora.data.labels import label_name, label_problem, resolve, unprintable
from edge_pslora.data.npyheader import NpyHeader
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.source import shown
from edge_pslora.data.spool import ByteSpool, rows_at_a_time, take_rows
from edge_pslora.data.tally import Part, Tally
from edge_pslora.data.types import Samples, join_labels
from edge_pslora.errors import DataError

# Numbers in a sample: one is held in memory as a whole, and of a table each column has a name.
MAX_SAMPLE, MAX_COLUMNS = 1 << 24, 1 << 20
_CHUNK = 1 << 20
_SAVE = "save it with numpy.savez(path, x=..., y=...)"


def array_error(path: Path, expected: str, found: str, remedy: str = _SAVE) -> DataError:
    return DataError(shown(path), expected=expected, found=found, remedy=remedy)


def check_size(path: Path, name: str, header: NpyHeader, data_bytes: int, limit: int) -> None:
    """Holds the header against the real size before anything is read."""
    if header.nbytes != data_bytes:
        found = f"a header of {name} that asks for {header.nbytes} bytes over {data_bytes}"
        raise array_error(path, "an array as large as its header says", found, "save it again")
    # Numbers become float32, so one byte can turn into four.
    if max(header.nbytes, 4 * math.prod(header.shape)) > limit:
        found, remedy = f"{header.nbytes} in {name}", "split the file, or raise max_bytes"
        raise array_error(path, f"at most {limit} bytes", found, remedy)


def read_elements(
    path: Path, stream: IO[bytes], name: str, header: NpyHeader, *, numeric: bool
) -> npt.NDArray[Any]:
    """The array whose data the stream stands at; as float32 where `numeric`, piece by piece."""
    if numeric and header.dtype.kind in "SU":
        raise array_error(path, f"numbers in {name}", "text")
    count, step = math.prod(header.shape), max(1, _CHUNK // header.dtype.itemsize)
    spool = ByteSpool()
    for begin in range(0, count, step):
        wanted = min(step, count - begin) * header.dtype.itemsize
        piece = stream.read(wanted)
        if len(piece) != wanted:
            raise array_error(path, f"{count} elements in {name}", "fewer", "save it again")
        if numeric:
            with np.errstate(over="ignore", invalid="ignore"):
                piece = np.frombuffer(piece, dtype=header.dtype).astype(np.float32).tobytes()
        spool.write(piece)
    flat = spool.array(np.float32 if numeric else header.dtype)
    if not header.fortran_order or len(header.shape) < 2:
        return flat.reshape(header.shape)
    turned = flat.reshape(header.shape[::-1]).T
    ordered = ByteSpool()
    for rows in _blocks(turned):
        ordered.write(np.ascontiguousarray(rows).tobytes())
    return ordered.array(turned.dtype).reshape(header.shape)


def _blocks(values: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    step = rows_at_a_time(values)
    return (values[start : start + step] for start in range(0, len(values), step))


def raw_labels(y: npt.NDArray[Any]) -> list[RawLabel | None]:
    """N labels; None for bytes or code points that are no text."""
    if y.dtype.kind == "S":
        return [_decoded(item) for item in y.tolist()]
    if y.dtype.kind != "U":
        return list(y.tolist())
    # tolist() raises on code points beyond Unicode, so they are looked for first.
    order = y.dtype.byteorder
    codes = np.ascontiguousarray(y).view(np.dtype(np.uint32).newbyteorder(order))
    good = np.all(codes.reshape(len(y), -1) <= 0x10FFFF, axis=1)
    return [str(y[i]) if good[i] else None for i in range(len(y))]


def _decoded(item: bytes) -> str | None:
    try:
        return item.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _finite(x: npt.NDArray[np.float32], options: ReadOptions, *, table: bool) -> npt.NDArray[Any]:
    """bool [N]; the codes for "missing" become NaN on the way."""
    found: list[npt.NDArray[np.bool_]] = [np.zeros(0, np.bool_)]
    for rows in _blocks(x.reshape(len(x), math.prod(x.shape[1:]))):
        for code in options.missing if table else ():
            rows[rows == np.float32(code)] = np.nan
        found.append(np.all(~np.isinf(rows) if table else np.isfinite(rows), axis=1))
    return np.concatenate(found)


def _sets(
    path: Path, y: npt.NDArray[Any], names: npt.NDArray[Any] | None, options: ReadOptions
) -> list[RawLabel | None] | None:
    """The joined label sets of y [N, C]; None if it is no matrix of 0 and 1 that means that.

    Under --task-type classification rows with a single 1 are read as that class.
    """
    if y.ndim != 2 or y.shape[1] < 2 or options.task_type in ("regression", "language"):
        return None
    single = options.task_type == "classification"
    if y.dtype.kind not in "biuf" or not all(np.isin(rows, (0, 1)).all() for rows in _blocks(y)):
        return None
    if single and not all((rows.sum(axis=1) == 1).all() for rows in _blocks(y)):
        return None
    words = _class_names(path, y.shape[1], names)
    found: list[RawLabel | None] = []
    for rows in _blocks(y):
        sets = ([words[i] for i in np.flatnonzero(row)] for row in rows)
        found += [chosen[0] if single else join_labels(chosen) for chosen in sets]
    return found


def _class_names(path: Path, count: int, names: npt.NDArray[Any] | None) -> list[str]:
    given: tuple[RawLabel | None, ...] | None
    given = tuple(raw_labels(names.ravel())) if names is not None else label_names(path)
    if given is None:
        return [str(i) for i in range(count)]
    words = [label_name(name) for name in given if name is not None and not label_problem(name)]
    if len(set(words)) != count or len(words) != len(given):
        raise array_error(
            path,
            f"{count} different names, one for each column of y",
            f"{len(given)}" + (" with some alike or unusable" if len(given) == count else ""),
            "correct labels",
        )
    return words


def samples_of(
    path: Path,
    x: npt.NDArray[np.float32],
    y: npt.NDArray[Any],
    names: npt.NDArray[Any] | None,
    options: ReadOptions,
) -> Part:
    """x [N, ...] and y [N] or [N, 1], or [N, C] of 0 and 1: C labels that each apply or not, called as
    `names` says. A two-dimensional x is a table (NaN = missing), more dimensions are an array, in which
    every number must be finite.

    Raises:
        DataError: wrong shapes, too many bad rows.
    """
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise array_error(path, "x of shape [N, features ...]", f"x of shape {list(x.shape)}")
    most = MAX_COLUMNS if x.ndim == 2 else MAX_SAMPLE
    if math.prod(x.shape[1:]) > most:
        raise array_error(
            path, f"at most {most} numbers in a sample", f"x of shape {list(x.shape)}"
        )
    if y.ndim == 0:
        raise array_error(path, "y of shape [N]", "a single number", "give one label a row")
    if len(x) != len(y):
        raise array_error(path, "as many rows in x as in y", f"{len(x)} and {len(y)}")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    raw: Iterable[RawLabel | None] | None = _sets(path, y, names, options)
    many = raw is not None and options.task_type != "classification"
    if raw is None:
        if y.ndim != 1:
            expected = "y of shape [N], or [N, classes] of 0 and 1"
            raise array_error(path, expected, f"y of shape {list(y.shape)}", "give one label a row")
        raw = chain.from_iterable(raw_labels(rows) for rows in _blocks(y))
    table = x.ndim == 2
    finite = _finite(x, options, table=table)
    name, tally = shown(path.name), Tally(shown(path), options)
    kept = array("q")
    labels = LabelColumn()
    for row, label in enumerate(raw):
        if label is None:
            problem: str | None = "a label that is no text"
        else:
            text_problem = unprintable(label) if isinstance(label, str) else None
            problem = text_problem or (None if many else label_problem(label))
        if not finite[row]:
            problem = "a number that is not finite"
        if problem is not None or label is None:
            tally.reject(row, f"{name}: row {row}", problem or "no label")
            continue
        kept.append(row)
        labels.append(label)
    if not len(kept):
        raise tally.no_rows()
    # Numbers stored as floats, in a table, may be a quantity; stored as integers they are classes.
    quantity = table and y.dtype.kind == "f" and not many
    task_options = replace(options, task_type="multilabel") if many else options
    class_names = names_for(labels, task_options, path)
    targets = resolve(labels, task_options, shown(path), table=quantity, names=class_names)
    for position, reason in targets.dropped:
        tally.reject(kept[position], f"{name}: row {kept[position]}", reason)
    inputs = take_rows(x, np.array(kept, dtype=np.int64)[targets.kept])
    samples = Samples("table" if table else "array", targets.task_type, inputs, targets.values)
    note = f"x of shape {list(x.shape)}, {x.shape[0]} labels in y" + (
        "" if class_names is None else ", with the names in labels.json"
    )
    return Part(samples, tally.close(len(samples)), (note,))
