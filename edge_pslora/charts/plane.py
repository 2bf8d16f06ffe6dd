"""The stability-plasticity plane: what a method learns against what it keeps, all methods in one view."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from statistics import median

from edge_pslora.charts import palette
from edge_pslora.charts.canvas import WIDTH, canvas
from edge_pslora.charts.dots import Dot, legend, look
from edge_pslora.charts.extra import can_draw
from edge_pslora.charts.types import Cell, Chart, Entry, Format, Table, number

_HEIGHT = 330
# where a number may stand beside its point, in pixels, the best place first
_PLACES = ((0, 9), (0, -9), (10, 0), (-10, 0), (9, 9), (-9, 9), (9, -9), (-9, -9))
_FURTHER = (1.0, 1.7, 2.5, 3.4)


@dataclass(frozen=True)
class Plane:
    """points: (along x, along y) of each method; both have its name and group."""

    key: str
    title: str
    text: str
    x_name: str
    y_name: str
    points: tuple[tuple[Dot, Dot], ...]
    x_form: Format
    y_form: Format
    note: str = ""


def plane_chart(data: Plane) -> Chart:
    """Points are numbered: names of forty methods would hide each other. The legend says who is who."""
    rows = tuple(
        (
            Cell(f"{i}. {x.name}"),
            *(number(v, data.x_form) for v in (x.mean, x.low, x.high)),
            *(number(v, data.y_form) for v in (y.mean, y.low, y.high)),
        )
        for i, (x, y) in enumerate(data.points, start=1)
    )
    header = ("method", data.x_name, "from", "to", data.y_name, "from", "to")
    groups = {e.name: e for e in legend(tuple(x for x, _ in data.points))}
    entries = tuple(
        Entry(
            x.name,
            palette.css(look(x.group)[0]),
            groups[x.group].shape if x.group in groups else "circle",
            str(i),
        )
        for i, (x, _) in enumerate(data.points, start=1)
    )
    svg = _draw(data) if can_draw() and data.points else ""
    return Chart(data.key, data.title, data.text, Table(header, rows), svg, entries, data.note)


def _draw(data: Plane) -> str:
    with canvas(_HEIGHT) as drawn:
        axes = drawn.axes
        across = _view([x for x, _ in data.points])
        along = _view([y for _, y in data.points])
        for x, y in data.points:
            colour, mark, wide = look(x.group)
            if x.low is not None and x.high is not None:
                ends = [max(x.low, across[0]), min(x.high, across[1])]
                axes.plot(ends, [y.mean] * 2, color=colour, linewidth=1, alpha=0.5)
            if y.low is not None and y.high is not None:
                ends = [max(y.low, along[0]), min(y.high, along[1])]
                axes.plot([x.mean] * 2, ends, color=colour, linewidth=1, alpha=0.5)
            axes.plot([x.mean], [y.mean], mark, color=colour, markersize=wide, markeredgewidth=0)
        if along[0] < 0 < along[1]:
            axes.axhline(0, color=palette.SOFT, linewidth=1, linestyle=(0, (3, 2)))
        axes.set_xlim(across)
        axes.set_ylim(along)
        axes.grid()
        axes.locator_params(nbins=5)
        axes.xaxis.set_major_formatter(lambda value, _: data.x_form(value).replace(".0 %", " %"))
        axes.yaxis.set_major_formatter(lambda value, _: data.y_form(value))
        axes.set_xlabel(data.x_name)
        axes.set_ylabel(data.y_name)
        for spine in axes.spines.values():
            spine.set_visible(False)
        drawn.figure.draw_without_rendering()  # or nothing is where it will be
        spots = axes.transData.transform([(x.mean, y.mean) for x, y in data.points]).tolist()
        taken = [(a - 4.0, b - 4.0, a + 4.0, b + 4.0) for a, b in spots]
        for i, (a, b) in enumerate(spots, start=1):
            right, up = _place(a, b, len(str(i)), taken)
            axes.annotate(
                str(i),
                axes.transData.inverted().transform((a, b)),
                xytext=(right, up),
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=9,
                color=palette.INK,
            )
        return drawn.svg(data.key, data.title, data.text)


def _view(dots: list[Dot]) -> tuple[float, float]:
    """All means, and about as much around them as half of the intervals need: one that is far longer than
    the others must not press all points into one."""
    means = [d.mean for d in dots]
    wide = max(means) - min(means)
    halves = [(d.high - d.low) / 2 for d in dots if d.low is not None and d.high is not None]
    around = max(0.1 * wide, median(halves) if halves else 0.0) or 0.01
    return min(means) - around, max(means) + around


def _place(
    x: float, y: float, letters: int, taken: list[tuple[float, float, float, float]]
) -> tuple[float, float]:
    """The first place for the number that hides nothing, or the one that hides least; it is then taken."""
    half = 3.2 * letters
    best: tuple[float, tuple[float, float], tuple[float, float, float, float]] | None = None
    for further, (right, up) in product(_FURTHER, _PLACES):
        dx, dy = right * further, up * further
        box = (x + dx - half, y + dy - 4.5, x + dx + half, y + dy + 4.5)
        hidden = sum(_overlap(box, other) for other in taken)
        if box[0] < 0 or box[2] > WIDTH or box[1] < 0 or box[3] > _HEIGHT:
            hidden += 1e3
        if best is None or hidden < best[0]:
            best = (hidden, (dx, dy), box)
        if hidden == 0:
            break
    assert best is not None
    taken.append(best[2])
    return best[1]


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0.0) * max(high, 0.0)
