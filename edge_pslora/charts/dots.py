"""A row for each method: its mean as a dot, its interval as a bar; reads well on a phone however many."""

from __future__ import annotations

from dataclasses import dataclass

from edge_pslora.charts import palette
from edge_pslora.charts.canvas import canvas, label
from edge_pslora.charts.extra import can_draw
from edge_pslora.charts.types import Cell, Chart, Entry, Format, Table, number

GROUPS = ("our default", "our variants", "other", "stored samples", "joint")
_LOOKS = {
    "our default": (palette.SERIES[0], "*", "star"),
    "our variants": (palette.SERIES[5], "o", "circle"),
    "other": (palette.SERIES[2], "s", "square"),
    "stored samples": (palette.SERIES[1], "^", "triangle"),
    "joint": (palette.INK, "D", "diamond"),
}


@dataclass(frozen=True)
class Dot:
    """low, high: the interval; None where there is none. group: one of GROUPS."""

    name: str
    mean: float
    low: float | None
    high: float | None
    group: str = "other"


@dataclass(frozen=True)
class Dots:
    """zero: a line at 0, and it is always in view. rule: a dashed line at another value."""

    key: str
    title: str
    text: str
    x_name: str
    dots: tuple[Dot, ...]
    form: Format
    note: str = ""
    zero: bool = False
    rule: float | None = None


def dot_chart(data: Dots) -> Chart:
    """In the order given, from the top down."""
    rows = tuple(
        (Cell(d.name), *(number(v, data.form) for v in (d.mean, d.low, d.high))) for d in data.dots
    )
    table = Table(("method", "mean", "from", "to"), rows)
    svg = _draw(data) if can_draw() and data.dots else ""
    return Chart(data.key, data.title, data.text, table, svg, legend(data.dots), data.note)


def legend(dots: tuple[Dot, ...]) -> tuple[Entry, ...]:
    """What the shapes mean; nothing where all are of one group."""
    there = [group for group in GROUPS if any(d.group == group for d in dots)]
    if len(there) < 2:
        return ()
    return tuple(Entry(g, palette.css(_LOOKS[g][0]), _LOOKS[g][2]) for g in there)  # type: ignore[arg-type]


def look(group: str) -> tuple[str, str, float]:
    """(colour, matplotlib's marker, its size) of a group."""
    colour, mark, _ = _LOOKS[group]
    return colour, mark, 11.0 if mark == "*" else 6.5


def _draw(data: Dots) -> str:
    n = len(data.dots)
    with canvas(19 * n + 52) as drawn:
        axes = drawn.axes
        for i, dot in enumerate(data.dots):
            colour, mark, wide = look(dot.group)
            if dot.low is not None and dot.high is not None:
                axes.plot([dot.low, dot.high], [i, i], color=colour, linewidth=2)
            axes.plot([dot.mean], [i], mark, color=colour, markersize=wide, markeredgewidth=0)
        if data.zero:
            axes.axvline(0, color=palette.SOFT, linewidth=1)
        if data.rule is not None:
            axes.axvline(data.rule, color=palette.SOFT, linewidth=1, linestyle=(0, (3, 2)))
        axes.set_ylim(n - 0.5, -0.5)
        axes.set_yticks(range(n), [label(d.name, 26, tail=9) for d in data.dots], fontsize=10)
        axes.tick_params(axis="y", labelcolor=palette.INK)
        axes.grid(axis="x")
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(lambda value, _: data.form(value).replace(".0 %", " %"))
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)
        axes.set_xlabel(data.x_name)
        return drawn.svg(data.key, data.title, data.text)
