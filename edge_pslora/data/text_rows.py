"""Rows of named values that hold texts (JSON lines, Parquet): what the names mean, and the rows."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_pslora.data.label_column import LabelColumn
from edge_pslora.data.label_names import names_for
from edge_pslora.data.labels import joined_labels, label_problem, resolve, unprintable
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.source import shown
from edge_pslora.data.spool import Texts, take_texts
from edge_pslora.data.tally import Part, Tally
from edge_pslora.data.types import Samples
from edge_pslora.errors import DataError

MESSAGES = "messages"
# As mlx-lm and the Hugging Face hub lay them out; the first whose keys are all there.
TEXT_KEYS: tuple[tuple[str, ...], ...] = (
    ("text",),
    (MESSAGES,),
    ("prompt", "completion"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("instruction", "input", "output"),
    ("instruction", "output"),
    ("input", "output"),
    ("question", "context", "answer"),
    ("question", "passage"),
    ("question", "answer"),
    ("question", "sentence"),
    ("sentence",),
)
LABEL_KEYS = ("label", "labels")


@dataclass(frozen=True)
class Shape:
    """texts: keys whose texts are joined by line breaks; label: its key, None: a language model's data.

    many: a label is a list of labels.
    """

    texts: tuple[str, ...]
    label: str | None
    many: bool = False


def find_shape(rows: Sequence[Mapping[str, Any]], options: ReadOptions) -> Shape:
    """What the first rows look like. Rows of nothing but text are a language model's data."""
    keys = {key: None for row in rows for key in row}
    given = options.label_column
    label = given or next((key for key in LABEL_KEYS if key in keys), None)
    usable = [key for key in keys if key != given and key not in options.ignore_columns]
    if options.text_column is not None:
        texts: tuple[str, ...] = (options.text_column,)
    else:
        texts = next((t for t in TEXT_KEYS if set(t) <= set(usable)), ("text",))
    only_text = label is None and set(usable) <= set(texts)
    if options.task_type == "language" or (options.task_type is None and only_text):
        return Shape(texts, None)
    label = label or "label"
    lists = [isinstance(row.get(label), list) for row in rows if label in row]
    many = options.task_type == "multilabel"
    many = many or (options.task_type is None and 2 * sum(lists) > len(lists))
    return Shape(texts, label, many)


def _text(row: Mapping[str, Any], shape: Shape) -> tuple[str, str | None]:
    """The text of one row, and why it cannot be used."""
    parts: list[str] = []
    for key in shape.texts:
        value = row[key]
        if key == MESSAGES and isinstance(value, list):
            for message in value:
                role = message.get("role") if isinstance(message, dict) else None
                content = message.get("content") if isinstance(message, dict) else None
                if not isinstance(role, str) or not isinstance(content, str):
                    return "", "a message without a text as 'role' and as 'content'"
                parts.append(f"{role}: {content}")
        elif isinstance(value, str):
            parts.append(value)
        else:
            return "", f"{shown(key, 40)!r} is not text"
    # an instruction without an input has an empty one
    text = parts[0] if len(parts) == 1 else "\n".join(part for part in parts if part.strip())
    return text, unprintable(text) if text.strip() else "empty text"


@dataclass
class TextRows:
    """The good rows so far. `lines` orders and names them in the file."""

    shape: Shape
    texts: Texts = field(default_factory=Texts)
    labels: LabelColumn = field(default_factory=LabelColumn)
    lines: array[int] = field(default_factory=lambda: array("q"))
    objects: int = 0
    first_keys: tuple[str, ...] = ()
    guessed: bool = False  # that there is no label was seen from the first rows
    absent: dict[str, int] = field(default_factory=dict)

    def take(self, row: Mapping[str, Any], line: int) -> str | None:
        """Adds one row; a reason if it cannot be used."""
        self.objects += 1
        self.first_keys = self.first_keys or tuple(row)
        shape = self.shape
        for key in (*shape.texts, *([shape.label] if shape.label else ())):
            if key not in row:
                self.absent[key] = self.absent.get(key, 0) + 1
                return f"no {shown(key, 40)!r}"
        text, problem = _text(row, shape)
        if problem is not None:
            return problem
        label: Any = "" if shape.label is None else row[shape.label]
        if shape.many:
            label = joined_labels(label)
            if label is None:
                return "labels that are not a list of names"
        elif shape.label is not None:
            if not isinstance(label, str | int | float):
                return "a label that is neither text nor a number"
            problem = label_problem(label)
        elif self.guessed and any(key in row for key in LABEL_KEYS):
            problem = "a label, which the rows before it lack"
        if problem is None:
            self.texts.append(text)
            self.labels.append(label)
            self.lines.append(line)
        return problem

    def require_keys(self, path: Path) -> None:
        """Raises DataError: no row has one of the keys."""
        shape = self.shape
        flags = [(key, "--text-column") for key in shape.texts]
        for key, flag in (*flags, *([(shape.label, "--label-column")] if shape.label else ())):
            if self.objects and self.absent.get(key) == self.objects:
                raise DataError(
                    shown(path),
                    expected=f"a column {shown(key, 40)!r}",
                    found="columns " + (shown(", ".join(self.first_keys)) or "none"),
                    remedy=f"name the right one with {flag}",
                )

    def part(
        self,
        path: Path,
        options: ReadOptions,
        tally: Tally,
        unit: str,
        names: tuple[str, ...] | None = None,
    ) -> Part:
        """The samples. unit: what stands between the file's name and a row's number; names: of the
        classes 0, 1, ..., where the file itself has them.

        Raises:
            DataError: no good row, too many bad ones, or labels that do not fit options.task_type.
        """
        self.require_keys(path)
        if not len(self.labels):
            raise tally.no_rows()
        shape = self.shape
        if shape.label is None:
            samples = language_samples(self.texts.sequence())
            return Part(samples, tally.close(len(samples)), (self._note(None),))
        if shape.many:
            options = replace(options, task_type="multilabel")
        names = names or names_for(self.labels, options, path)
        targets = resolve(self.labels, options, shown(path), names=names)
        for position, reason in targets.dropped:
            line = self.lines[position]
            tally.reject(line, f"{shown(path.name)}{unit}{line}", reason)
        texts = self.texts.sequence()
        if len(targets.kept) < len(texts):
            texts = take_texts(texts, targets.kept)
        samples = Samples("text", targets.task_type, texts, targets.values)
        return Part(samples, tally.close(len(samples)), (self._note(names),))

    def _note(self, names: tuple[str, ...] | None) -> str:
        shape = self.shape
        keys = " and ".join(f"'{shown(key, 40)}'" for key in shape.texts)
        joined = ", joined by a line break" if len(shape.texts) > 1 else ""
        if MESSAGES in shape.texts:
            joined = ", a line 'role: content' for each message"
        label = "" if shape.label is None else f", label from '{shown(shape.label, 40)}'"
        named = "" if names is None else ", with the names kept beside it"
        return f"text from {keys}{joined}{label}{named}"


def language_samples(texts: Sequence[str]) -> Samples:
    """Texts that are their own targets."""
    return Samples("text", "language", texts, np.zeros(len(texts), dtype="<U1"))
