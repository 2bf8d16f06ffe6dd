"""Which column of a table is what: delimiter, header, label, text."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass

from edge_pslora.data.options import ReadOptions
from edge_pslora.data.source import shown
from edge_pslora.errors import DataError

DELIMITERS = ("\t", ";", ",")
LABEL_NAMES = ("label", "target", "class", "y")
_MISSING = frozenset(("", "?", "na", "nan"))


@dataclass(frozen=True)
class Columns:
    """names: one per column, made up where the file has no header; label, text, features: positions.

    label: None where a language model is to learn from the text.
    """

    names: tuple[str, ...]
    has_header: bool
    label: int | None
    text: int | None
    features: tuple[int, ...]

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(self.names[i] for i in self.features)

    @property
    def note(self) -> str:
        """What was understood, for people."""
        what = f"text in {self._quoted(self.text)}" if self.text is not None else self._features()
        return what if self.label is None else f"{what}, label in {self._quoted(self.label)}"

    def _features(self) -> str:
        names = ", ".join(shown(name, 30) for name in self.feature_names[:6])
        more = f", and {len(self.features) - 6} more" if len(self.features) > 6 else ""
        return f"{len(self.features)} feature columns ({names}{more})"

    def _quoted(self, position: int) -> str:
        return f"'{shown(self.names[position], 40)}'"


def is_missing(cell: str) -> bool:
    """'' ? NA NaN, in any case."""
    return cell.casefold() in _MISSING


def number(cell: str) -> int | float | None:
    """The finite number in a cell, an int where it is written as one; None if there is none."""
    try:
        value = float(cell)
    except ValueError:
        return None
    # float() also takes 1_000, infinity and digits of other scripts.
    if not math.isfinite(value) or "_" in cell or not cell.isascii():
        return None
    # Whole numbers beyond 2**53 are exact as int only.
    return int(cell) if cell.strip("+-").isdigit() and len(cell) < 25 else value


def find_delimiter(head: bytes) -> str:
    """The delimiter that cuts the first lines into equally many cells, the more the better."""
    lines = [line for line in head.decode("utf-8", "replace").split("\n")[:12] if line.strip()]
    lines = lines[:-1] if len(lines) > 2 else lines  # the last one may be cut
    best, best_score = ",", (False, 1)
    for delimiter in DELIMITERS:
        counts = [_count(line, delimiter) for line in lines]
        if counts and (score := (len(set(counts)) == 1 and counts[0] > 1, counts[0])) > best_score:
            best, best_score = delimiter, score
    return best


def _count(line: str, delimiter: str) -> int:
    try:
        return len(next(csv.reader([line], delimiter=delimiter), []))
    except csv.Error:
        return 0


def _looks_like_header(first: Sequence[str], options: ReadOptions) -> bool:
    named = {cell.casefold() for cell in first}
    given = [options.label_column, options.text_column, options.time_column, options.group_column]
    given += [*options.feature_columns, *options.ignore_columns]
    asked = {name.casefold() for name in given if name}
    # An index such as "-1" is no name.
    asked = {name for name in asked if number(name) is None}
    if named & (asked | set(LABEL_NAMES)):
        return True
    # '?' and NA stand for data; an empty cell may head a column of row numbers.
    words = [cell for cell in first if cell]
    return len(words) >= max(1, len(first) - 1) and all(
        number(cell) is None and not is_missing(cell) for cell in words
    )


def _position(wanted: str, names: Sequence[str]) -> int | None:
    if wanted in names:
        return names.index(wanted)
    try:
        index = int(wanted)
    except ValueError:
        return None
    return index % len(names) if -len(names) <= index < len(names) else None


def find_columns(first: Sequence[str], options: ReadOptions, where: str) -> Columns:
    """Reads the meaning of the columns from the first row (cells stripped).

    Raises:
        DataError: fewer than two columns, names given twice, or no column of the name asked for.
    """
    language = options.task_type == "language"
    if len(first) < (1 if language else 2):
        raise DataError(
            where,
            expected="columns between commas, tabs or semicolons",
            found="one column",
            remedy="give a table with at least one feature and a label",
        )
    names, has_header = header_names(first, options, where)
    return columns_of(names, options, where, has_header=has_header)


def header_names(
    first: Sequence[str], options: ReadOptions, where: str
) -> tuple[tuple[str, ...], bool]:
    """The columns' names, made up where the first row is data; whether it is a header.

    Raises:
        DataError: names given twice.
    """
    has_header = _looks_like_header(first, options)
    names = tuple(cell if has_header and cell else f"column {i}" for i, cell in enumerate(first))
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(
            where,
            expected="a different name for each column",
            found=f"{shown(twice, 60)!r} more than once",
            remedy="rename one of them",
        )
    return names, has_header


def columns_of(
    names: Sequence[str], options: ReadOptions, where: str, *, has_header: bool = True
) -> Columns:
    """The meaning of columns that have these names.

    Raises:
        DataError: no column of the name asked for, no feature left, or one column as two things.
    """
    label = None if options.task_type == "language" else _label(names, options, where)
    text = _text(names, has_header, options, where)
    if text is not None and text == label:
        raise DataError(
            where,
            expected="a text column beside the label",
            found=f"{shown(names[text], 60)!r} as both",
            remedy="name the right ones with --text-column and --label-column",
        )
    if label is None and text is None:
        raise DataError(
            where,
            expected="a text column for a language model",
            found="columns " + shown(", ".join(names)),
            remedy="name it with --text-column",
        )
    features = () if text is not None else _features(names, label, options, where)
    return Columns(tuple(names), has_header, label, text, features)


def _features(
    names: Sequence[str], label: int | None, options: ReadOptions, where: str
) -> tuple[int, ...]:
    wanted = column_positions(options.feature_columns, names, "--feature-columns", where)
    ignored = column_positions(options.ignore_columns, names, "--ignore-columns", where)
    chosen = wanted or [i for i in range(len(names)) if i != label]
    found = tuple(i for i in chosen if i not in ignored)
    if label in found or not found:
        raise DataError(
            where,
            expected="feature columns beside the label",
            found=f"the label {shown(names[label or 0], 60)!r} among them" if found else "none",
            remedy="change --feature-columns, --ignore-columns or --label-column",
        )
    return found


def column_positions(
    wanted: Sequence[str], names: Sequence[str], flag: str, where: str
) -> list[int]:
    found: list[int] = []
    for name in wanted:
        position = _position(name, names)
        if position is None:
            raise _no_column(name, names, flag, where)
        found.append(position)
    return found


def _label(names: Sequence[str], options: ReadOptions, where: str) -> int:
    if options.label_column is not None:
        found = _position(options.label_column, names)
        if found is None:
            raise _no_column(options.label_column, names, "--label-column", where)
        return found
    lowered = [name.casefold() for name in names]
    known = (*LABEL_NAMES, "labels") if options.task_type == "multilabel" else LABEL_NAMES
    named = next((lowered.index(name) for name in known if name in lowered), None)
    if named is not None:
        return named
    # the last one that is not said to be something else
    others = column_positions(options.ignore_columns, names, "--ignore-columns", where)
    others += column_positions(options.feature_columns, names, "--feature-columns", where)
    left = [i for i in range(len(names)) if i not in others]
    return left[-1] if left else len(names) - 1


def _text(names: Sequence[str], has_header: bool, options: ReadOptions, where: str) -> int | None:
    if options.text_column is not None:
        found = _position(options.text_column, names)
        if found is None:
            raise _no_column(options.text_column, names, "--text-column", where)
        return found
    return names.index("text") if has_header and "text" in names else None


def _no_column(wanted: str, names: Sequence[str], flag: str, where: str) -> DataError:
    return DataError(
        where,
        expected=f"a column {shown(wanted, 60)!r}",
        found="columns " + shown(", ".join(names)),
        remedy=f"name one of them, or its index, with {flag}",
    )
