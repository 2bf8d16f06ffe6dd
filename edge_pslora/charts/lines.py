"""Lines over the sequence: a value of each of several things after every session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_pslora.charts import palette
from edge_pslora.charts.canvas import canvas
from edge_pslora.charts.extra import can_draw
from edge_pslora.charts.types import Cell, Chart, Entry, Format, Shape, Table, number

FEW = 8  # lines that colours can tell apart
_MARKS = ("o", "s", "D", "^", "v", "P", "X", "*")
_SHAPES: tuple[Shape, ...] = ("circle", "square", "diamond", "triangle")
_DASHES = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1, 2)))


@dataclass(frozen=True)
class Line:
    """values: one for each x, None where there is none."""

    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Lines:
    """x: what the sessions are called. mean: a bold line, drawn over the others. floor: the lowest y."""

    key: str
    title: str
    text: str
    x_name: str
    y_name: str
    x: tuple[str, ...]
    lines: tuple[Line, ...]
    form: Format
    mean: Line | None = None
    note: str = ""
    floor: float | None = None


def line_chart(data: Lines) -> Chart:
    """Up to eight lines have a colour each; of more, the colour says which is older."""
    all_lines = [*data.lines, *([data.mean] if data.mean else [])]
    header = (data.x_name, *(line.name for line in all_lines))
    rows = tuple(
        (Cell(name), *(number(line.values[i], data.form) for line in all_lines))
        for i, name in enumerate(data.x)
    )
    table = Table(header, rows)
    svg = _draw(data) if can_draw() and data.x and data.lines else ""
    return Chart(data.key, data.title, data.text, table, svg, _legend(data), data.note)


def _legend(data: Lines) -> tuple[Entry, ...]:
    if len(data.lines) == 1 and data.mean is None:
        return ()
    entries: list[Entry] = []
    if len(data.lines) <= FEW:
        for i, line in enumerate(data.lines):
            shape = _SHAPES[i % len(_SHAPES)]
            entries.append(Entry(line.name, palette.css(palette.SERIES[i]), shape))
    else:
        first, last = data.lines[0].name, data.lines[-1].name
        entries.append(Entry(f"oldest: {first}", palette.css(palette.age(0)), "line"))
        entries.append(Entry(f"newest: {last}", palette.css(palette.age(1)), "line"))
    if data.mean is not None:
        entries.append(Entry(data.mean.name, palette.css(palette.INK), "line"))
    return tuple(entries)


def _draw(data: Lines) -> str:
    few = len(data.lines) <= FEW
    with canvas(250) as drawn:
        axes = drawn.axes
        spots = range(len(data.x))
        for i, line in enumerate(data.lines):
            share = i / max(len(data.lines) - 1, 1)
            colour = palette.SERIES[i] if few else palette.age(share)
            _line(axes, spots, line, colour, i if few else None)
        if data.mean is not None:
            _line(axes, spots, data.mean, palette.INK, None, width=2.4)
        ticks = _ticks(len(data.x))
        axes.set_xticks(ticks, [data.x[i] for i in ticks])
        axes.set_xlim(-0.15, max(len(data.x) - 1, 1) + 0.15)
        if data.floor is not None:
            axes.set_ylim(bottom=data.floor)
        axes.grid(axis="y")
        axes.yaxis.set_major_formatter(lambda value, _: data.form(value).replace(".0 %", " %"))
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(data.x_name)
        axes.set_ylabel(data.y_name)
        return drawn.svg(data.key, data.title, data.text)


def _line(
    axes: object, spots: range, line: Line, colour: str, kind: int | None, width: float = 1.6
) -> None:
    """Without points for None; a value between two of them still has its mark."""
    ys = [float("nan") if v is None else v for v in line.values]
    known = [v is not None for v in line.values]
    alone = sum(known) == 1
    marked = kind is not None and len(spots) <= 12
    axes.plot(  # type: ignore[attr-defined]
        spots,
        ys,
        color=colour,
        linewidth=width,
        linestyle=_DASHES[(kind or 0) % len(_DASHES)],
        marker=_MARKS[kind % len(_MARKS)]
        if marked and kind is not None
        else ("o" if alone else None),
        markersize=5,
        markeredgewidth=0,
        solid_joinstyle="round",
    )


def _ticks(n: int, most: int = 10) -> Sequence[int]:
    step = max(1, -(-n // most))
    return range(0, n, step)
