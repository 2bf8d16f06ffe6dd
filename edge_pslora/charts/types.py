"""What a page shows of a chart: the drawing, its legend, and the same figures as a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edge_pslora.units import format_size

Shape = Literal["line", "circle", "square", "diamond", "triangle", "star", "box"]
Format = Callable[[float], str]
NOTHING = "–"


@dataclass(frozen=True)
class Cell:
    """text: what is read. value: the figure itself, unrounded, for whoever compares; None: a word."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """The first cell of a row names it."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Entry:
    """One line of a legend. colour: a CSS colour, such as var(--c1). mark: text inside or beside it."""

    name: str
    colour: str
    shape: Shape
    mark: str = ""


@dataclass(frozen=True)
class Chart:
    """svg: the drawing, or "" where there is nothing to draw with. key: its id on the page.

    text: one sentence that says what is seen. note: how to read it.
    """

    key: str
    title: str
    text: str
    table: Table
    svg: str = ""
    legend: tuple[Entry, ...] = ()
    note: str = ""


def number(value: float | None, form: Format) -> Cell:
    """A figure as a cell; None is a dash."""
    return Cell(NOTHING) if value is None else Cell(form(value), value)


def percent(value: float) -> str:
    return f"{_fixed(100 * value, 1)} %"


def points(value: float) -> str:
    """A difference of fractions, in percentage points."""
    return _fixed(100 * value, 1, "+")


def plain(value: float) -> str:
    return _fixed(value, 3)


def signed(value: float) -> str:
    return _fixed(value, 3, "+")


def count(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ")


def size(value: float) -> str:
    return format_size(round(value))


def _fixed(value: float, digits: int, sign: str = "") -> str:
    """With a true minus, and no sign on what rounds to zero."""
    rounded = round(value, digits) or 0.0  # never -0.0
    return f"{rounded:{sign if rounded else ''}.{digits}f}".replace("-", "−")
