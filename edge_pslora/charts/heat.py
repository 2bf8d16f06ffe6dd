"""Heat maps: one value for each row (a task, a layer) and column (a session)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from edge_pslora.charts import palette
from edge_pslora.charts.canvas import WIDTH, canvas, label
from edge_pslora.charts.extra import can_draw
from edge_pslora.charts.types import Cell, Chart, Entry, Format, Table, number

_LEVELS = 20  # colours in all; a path for each, so that a thousand cells stay small
_LETTERS = 6.2  # pixels of a letter, about


@dataclass(frozen=True)
class HeatMap:
    """values[row][column]; None: nothing there. kind: "size" from the least to the most, "change" around 0.

    least: the change that has the full colour at least, so that little does not look like much.
    tail: how many last letters of a row's name stay when it is cut.
    """

    key: str
    title: str
    text: str
    corner: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    form: Format
    kind: Literal["size", "change"] = "size"
    x_name: str = ""
    note: str = ""
    least: float = 0.0
    tail: int = 0


def heat_map(data: HeatMap) -> Chart:
    """The colours span the values there are, so that 0.91 and 0.97 look different."""
    known = [v for row in data.values for v in row if v is not None]
    rows = tuple(
        (Cell(name), *(number(value, data.form) for value in values))
        for name, values in zip(data.rows, data.values, strict=True)
    )
    table = Table((data.corner, *data.columns), rows)
    if not known:
        return Chart(data.key, data.title, data.text, table, note=data.note)
    low, high = min(known), max(known)
    most = max(abs(low), abs(high), data.least)
    if data.kind == "change":
        share: Callable[[float], float] = lambda v: v / most if most else 0.0  # noqa: E731
        colour = palette.change
        ends = [(-1.0, f"{data.form(-most)} lost"), (1.0, f"{data.form(most)} gained")]
        ends = [(s, t) for s, t in ends if (low < 0 if s < 0 else high > 0)]
    else:
        share = lambda v: 0.08 + 0.92 * ((v - low) / (high - low) if high > low else 0.5)  # noqa: E731
        colour = palette.heat
        ends = [(0.08, data.form(low)), (1.0, data.form(high))] if high > low else []
    legend = tuple(Entry(text, palette.css(colour(at)), "box") for at, text in ends)
    svg = _draw(data, share, colour) if can_draw() else ""
    return Chart(data.key, data.title, data.text, table, svg, legend, data.note)


def _draw(data: HeatMap, share: Callable[[float], float], colour: Callable[[float], str]) -> str:
    n, m = len(data.rows), len(data.columns)
    high = min(26.0, max(8.0, 420 / n))
    with canvas(high * n + 44) as drawn:
        axes = drawn.axes
        cells: dict[str, list[tuple[int, int]]] = {}
        for i, row in enumerate(data.values):
            for j, value in enumerate(row):
                if value is not None:
                    level = round(share(value) * _LEVELS) / _LEVELS
                    cells.setdefault(colour(level), []).append((i, j))
        for code, places in sorted(cells.items()):
            axes.add_patch(_boxes(places, code))
        most = 26 if m <= 12 else 17
        names = [label(row, most, tail=data.tail) for row in data.rows]
        wide = (WIDTH - 24 - _LETTERS * max(map(len, names))) / m
        texts = [data.form(v) for row in data.values for v in row if v is not None]
        if max(map(len, texts)) * _LETTERS < wide:
            for i, row in enumerate(data.values):
                for j, value in enumerate(row):
                    if value is not None:
                        ink = palette.DEEP if abs(share(value)) > 0.72 else palette.INK
                        drawn.write(j, i, data.form(value), ink, min(10.0, high - 4))
        axes.set_xlim(-0.5, m - 0.5)
        axes.set_ylim(n - 0.5, -0.5)
        every = max(1, -(-11 // int(high)))
        axes.set_yticks(range(0, n, every), names[::every], fontsize=10)
        step = max(1, -(-m // 12))
        ticks = [label(c, 8) for c in data.columns[::step]]
        axes.set_xticks(range(0, m, step), ticks, fontsize=10)
        axes.set_xlabel(data.x_name)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return drawn.svg(data.key, data.title, data.text)


def _boxes(places: list[tuple[int, int]], code: str) -> Any:
    """All cells of one colour as one path, with a gap between them."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    points: list[tuple[float, float]] = []
    steps: list[Any] = []
    for i, j in places:
        left, right, top, bottom = j - 0.46, j + 0.46, i - 0.44, i + 0.44
        points += [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        steps += [Path.MOVETO, *[Path.LINETO] * 3, Path.CLOSEPOLY]
    return PathPatch(Path(points, steps), facecolor=code, edgecolor="none", linewidth=0)
