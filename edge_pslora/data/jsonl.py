"""JSON lines: an object with texts, and mostly a label, on each line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from edge_pslora.data.lines import check_text, read_lines
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.source import open_input, shown
from edge_pslora.data.tally import Part, Tally
from edge_pslora.data.text_rows import TextRows, find_shape

HEAD_ROWS = 50  # which decide what the keys mean


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key given twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# A decoder of our own: json.loads has no such settings to share between lines.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _parse(line: str) -> dict[str, Any] | str:
    """The object on the line, or why there is none."""
    try:
        value = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg}, character {error.colno})"
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:
        return f"not strict JSON ({shown(str(error), 60)})"
    return value if isinstance(value, dict) else "not a JSON object"


def _objects(stream: BinaryIO, name: str, tally: Tally) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each good line; the others go to `tally`."""
    for number, line in read_lines(stream, name, tally):
        if not line.strip():
            continue
        row = _parse(line)
        if isinstance(row, str):
            tally.reject(number, f"{name}:{number}", row)
        else:
            yield number, row


def read_jsonl(path: Path, options: ReadOptions) -> Part:
    """Reads a .jsonl file as a text data set: with labels, or as a language model's data.

    Raises:
        DataError: no such columns, too many bad rows, or labels that do not fit options.task_type.
    """
    name, tally = shown(path.name), Tally(shown(path), options)
    with open_input(path) as stream:
        check_text(path, stream, options.max_bytes)
        objects = _objects(stream, name, tally)
        head = list(islice(objects, HEAD_ROWS))
        shape = find_shape([row for _, row in head], options)
        rows = TextRows(shape, guessed=options.task_type is None)
        for number, row in chain(head, objects):
            problem = rows.take(row, number)
            if problem is not None:
                tally.reject(number, f"{name}:{number}", problem)
    return rows.part(path, options, tally, unit=":")
