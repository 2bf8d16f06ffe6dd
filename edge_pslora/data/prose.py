"""Plain text for language models: cut into passages where paragraphs and sentences end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from edge_pslora.data.columns import LABEL_NAMES, find_delimiter, number
from edge_pslora.data.labels import unprintable
from edge_pslora.data.lines import check_text, read_lines
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.source import open_input, shown
from edge_pslora.data.spool import Texts
from edge_pslora.data.tally import Part, Tally
from edge_pslora.data.text_rows import language_samples

PROSE_SUFFIXES = (".txt", ".md")
_SENTENCE_END = re.compile(r"(?<=[.!?…。！？])[\"'”’)\]]*\s+")
_WORD = re.compile(r"[^\W\d_]{2,}")


def looks_like_prose(head: bytes) -> bool:
    """Whether the first lines are sentences, and not the rows of a table."""
    text = head.decode("utf-8", "replace")
    lines = [line for line in text.split("\n")[:12] if line.strip()]
    if len(_WORD.findall("\n".join(lines))) < 3:
        return False
    delimiter = find_delimiter(head)
    rows = [[cell.strip() for cell in line.split(delimiter)] for line in lines]
    cells = [cell for row in rows for cell in row if cell]
    numbers = sum(number(cell) is not None for cell in cells)
    heads = {cell.casefold() for cell in rows[0]} & {*LABEL_NAMES, "text"}
    alike = len(rows[0]) > 1 and sum(len(row) == len(rows[0]) for row in rows) > len(rows) / 2
    return not (alike and (heads or 3 * numbers >= len(cells)))


def is_prose(path: Path, options: ReadOptions) -> bool:
    """Whether a .txt or .md file is to be read as text, and not as a table."""
    if options.task_type == "language":
        return True
    if options.task_type is not None or options.window_seconds is not None:
        return False
    if options.label_column is not None or options.text_column is not None:
        return False
    if path.suffix.casefold() == ".md":
        return True
    with open_input(path) as stream:
        return looks_like_prose(check_text(path, stream, options.max_bytes))


def _cut(paragraph: str, limit: int) -> Iterator[str]:
    """Pieces of at most `limit` characters: at the ends of sentences, else between words."""
    piece = ""
    for sentence in _SENTENCE_END.split(paragraph):
        if piece and len(piece) + 1 + len(sentence) > limit:
            yield piece
            piece = ""
        piece = f"{piece} {sentence}" if piece else sentence
        while len(piece) > limit:
            end = piece.rfind(" ", 1, limit + 1)
            end = limit if end < limit // 2 else end
            yield piece[:end].rstrip()
            piece = piece[end:].lstrip()
    if piece:
        yield piece


def passages(paragraphs: Iterable[str], limit: int) -> Iterator[str]:
    """Paragraphs packed together, or cut, so that each passage has at most `limit` characters."""
    passage = ""
    for paragraph in paragraphs:
        if passage and len(passage) + 1 + len(paragraph) > limit:
            yield passage
            passage = ""
        joined = f"{passage}\n{paragraph}" if passage else paragraph
        *whole, passage = [joined] if len(joined) <= limit else list(_cut(joined, limit))
        yield from whole
    if passage:
        yield passage


def _paragraphs(stream: BinaryIO, name: str, tally: Tally, limit: int) -> Iterator[str]:
    """Lines joined by blanks up to an empty line; very long ones in parts."""
    held: list[str] = []
    size = 0
    for number_, line in read_lines(stream, name, tally):
        text = " ".join(line.split())
        problem = unprintable(text)
        if problem is not None:
            tally.reject(number_, f"{name}:{number_}", problem)
            continue
        if held and (not text or size > 64 * limit):
            yield " ".join(held)
            held, size = [], 0
        if text:
            held.append(text)
            size += len(text)
    if held:
        yield " ".join(held)


def read_prose(path: Path, options: ReadOptions) -> Part:
    """One file of text as a language model's data.

    Raises:
        DataError: no text, too many unreadable lines.
    """
    return read_prose_files(path, [path], options)


def read_prose_files(source: Path, paths: list[Path], options: ReadOptions) -> Part:
    """Files of text, one after the other, as a language model's data."""
    tally, texts, limit = Tally(shown(source), options), Texts(), options.passage_characters
    count = 0
    for path in paths:
        name = shown(path.name)
        with open_input(path) as stream:
            check_text(path, stream, options.max_bytes)
            for passage in passages(_paragraphs(stream, name, tally, limit), limit):
                texts.append(passage)
                count += 1
    if not count:
        raise tally.no_rows()
    samples = language_samples(texts.sequence())
    files = "" if len(paths) == 1 else f"{len(paths)} files of "
    note = f"{files}plain text, cut into {count} passages of at most {limit} characters"
    return Part(samples, tally.close(len(samples)), (note,))
