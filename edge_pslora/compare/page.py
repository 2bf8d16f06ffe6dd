"""The page of a comparison: all methods on all streams, in charts and tables."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_pslora.charts.dots import Dot, Dots, dot_chart
from edge_pslora.charts.extra import can_draw
from edge_pslora.charts.heat import HeatMap, heat_map
from edge_pslora.charts.lines import Line, Lines, line_chart
from edge_pslora.charts.plane import Plane, plane_chart
from edge_pslora.charts.types import Chart, Table, percent, points
from edge_pslora.compare.markdown import READING
from edge_pslora.compare.overall import OverallFigures, ablation, losses, overall, targets
from edge_pslora.compare.statistics import Estimate
from edge_pslora.compare.summary import (
    DEFAULT,
    FROZEN,
    SEQUENTIAL,
    MethodFigures,
    StreamFigures,
)
from edge_pslora.compare.tables import (
    Sources,
    ablation_table,
    accuracy_table,
    cost_table,
    loss_table,
    overall_table,
    target_table,
)
from edge_pslora.pages.render import render_page
from edge_pslora.pages.workspace import NO_DRAWINGS

_CURVES = (DEFAULT, SEQUENTIAL, FROZEN, "paper", "ewc", "ranpac", "replay")  # at most eight


@dataclass(frozen=True)
class StreamPart:
    """One stream's part of the page."""

    key: str
    name: str
    about: str
    notes: tuple[str, ...]
    charts: tuple[Chart, ...]
    accuracy: Table
    cost: Table


def comparison_page(
    streams: Sequence[StreamFigures],
    sources: Sources,
    ablations: Sequence[str],
    other_tasks: Collection[str] = (),
    titles: Mapping[str, str] | None = None,
) -> str:
    """One self-contained HTML page. ablations: keys of the variants of our default. titles: what a
    stream is, by its key."""
    facts = _facts(streams, sources, ablations, other_tasks, titles or {})
    return render_page("comparison.html", c=facts)


def _facts(
    streams: Sequence[StreamFigures],
    sources: Sources,
    ablations: Sequence[str],
    other_tasks: Collection[str],
    titles: Mapping[str, str],
) -> dict[str, Any]:
    found = overall(streams)
    lost = losses(streams)
    return {
        "sources": sources,
        "reading": READING,
        "notes": () if can_draw() else (NO_DRAWINGS,),
        "targets": target_table(targets(streams, other_tasks)),
        "charts": _overall_charts(streams, found),
        "overall": overall_table(found),
        "losses": loss_table(lost),
        "shown": sum(loss.shown for loss in lost),
        "ablation": ablation_table(streams, ablations),
        "ablation_chart": _ablation_chart(streams, ablations),
        "streams": [_part(i, s, titles.get(s.stream, "")) for i, s in enumerate(streams, start=1)],
    }


def _overall_charts(
    streams: Sequence[StreamFigures], found: Sequence[OverallFigures]
) -> list[Chart]:
    if len(streams) < 2:
        return []
    # a mean over other streams is no fair neighbour
    full = [f for f in found if f.streams == len(streams)]
    note = f"Means over all {len(streams)} streams; methods that some stream lacks are left out."
    both = [f for f in full if f.learning is not None and f.backward is not None]
    plane = Plane(
        "plane",
        "What is learned and what is kept",
        f"learning accuracy against backward transfer of {len(both)} methods, means over streams",
        x_name="learning accuracy",
        y_name="backward transfer, points",
        points=tuple(
            (
                Dot(f.name, f.learning or 0.0, None, None, f.group),
                Dot(f.name, f.backward or 0.0, None, None, f.group),
            )
            for f in both
        ),
        x_form=percent,
        y_form=points,
        note=f"Up and to the right is better. {note}",
    )
    bars = Dots(
        "averages",
        "Average accuracy at the end",
        f"average accuracy of {len(full)} methods, means over streams",
        "average accuracy",
        tuple(Dot(f.name, f.average, None, None, f.group) for f in _best_first(full)),
        percent,
        note=note,
    )
    charts = [plane_chart(plane)] if both else []
    return [*charts, dot_chart(bars)] if full else charts


def _best_first(found: Sequence[OverallFigures]) -> list[OverallFigures]:
    return sorted(found, key=lambda f: -f.average)


def _part(number: int, s: StreamFigures, title: str) -> StreamPart:
    key = f"stream-{number}-{re.sub('[^a-z0-9]+', '-', s.name.lower()).strip('-')}"
    seeds = f"{len(s.orders)} order{_s(s.orders)}, {len(s.seeds)} seed{_s(s.seeds)}"
    bound = None if s.bound is None else s.method(s.bound)
    if bound is not None:
        title = f"{title or s.stream} (gap to: {bound.name})"
    charts = [_averages(key, s), _plane(key, s), _curves(key, s), _default_map(key, s)]
    return StreamPart(
        key,
        s.name,
        f"{title}{': ' if title else ''}{len(s.tasks)} tasks, {seeds}, {len(s.methods)} methods",
        s.notes,
        tuple(chart for chart in charts if chart is not None),
        accuracy_table(s),
        cost_table(s),
    )


def _averages(key: str, s: StreamFigures) -> Chart:
    ranked = sorted(s.methods, key=lambda m: -m.average.mean)
    default = s.method(DEFAULT)
    best = ranked[0]
    return dot_chart(
        Dots(
            f"{key}-averages",
            "Average accuracy at the end, with 95 % intervals",
            f"{len(ranked)} methods; the highest mean is that of {best.name}: {percent(best.average.mean)}",
            "average accuracy",
            tuple(_dot(m, m.average) for m in ranked),
            percent,
            note="" if default is None else "The dashed line is our default.",
            rule=None if default is None else default.average.mean,
        )
    )


def _plane(key: str, s: StreamFigures) -> Chart | None:
    both = [
        (_dot(m, m.learning), _dot(m, m.backward))
        for m in s.methods
        if m.learning is not None and m.backward is not None
    ]
    if not both:
        return None
    return plane_chart(
        Plane(
            f"{key}-plane",
            "What is learned and what is kept",
            f"learning accuracy against backward transfer of {len(both)} methods, with 95 % intervals",
            x_name="learning accuracy",
            y_name="backward transfer, points",
            points=tuple(both),
            x_form=percent,
            y_form=points,
            note="Up and to the right is better; thin lines are 95 % intervals, cut at the edge.",
        )
    )


def _curves(key: str, s: StreamFigures) -> Chart | None:
    drawn = [m for m in s.methods if m.key in _CURVES and len(m.curve) == len(s.tasks)]
    if not drawn or len(s.tasks) < 2:
        return None
    return line_chart(
        Lines(
            f"{key}-curves",
            "Accuracy over the tasks so far, session after session",
            f"mean accuracy over the tasks learned so far, of {len(drawn)} methods",
            x_name="session",
            y_name="accuracy",
            x=tuple(str(i + 1) for i in range(len(s.tasks))),
            lines=tuple(Line(m.name, m.curve) for m in drawn),
            form=percent,
            note=f"Mean over the seeds of order {s.orders[0]}.",
        )
    )


def _default_map(key: str, s: StreamFigures) -> Chart | None:
    default = s.method(DEFAULT)
    if default is None or len(s.tasks) < 2 or len(default.matrix) != len(s.tasks):
        return None
    rows = range(len(s.tasks))
    changes = tuple(
        tuple(None if i < j else default.matrix[i][j] - default.matrix[j][j] for i in rows)
        for j in rows
    )
    return heat_map(
        HeatMap(
            f"{key}-forgetting",
            "What our default lost since it was learned",
            "change of accuracy since each task was learned, in points",
            corner="task",
            rows=s.tasks,
            columns=tuple(str(i + 1) for i in rows),
            values=changes,
            form=points,
            kind="change",
            x_name="session",
            note=f"A row is a task. Mean over the seeds of order {s.orders[0]}.",
            least=0.05,
        )
    )


def _ablation_chart(streams: Sequence[StreamFigures], keys: Sequence[str]) -> Chart | None:
    rows = ablation(streams, keys)
    if not rows:
        return None
    values = tuple(
        tuple(
            None if m is None or m.judgement is None else -m.judgement.paired.difference.mean
            for m in own
        )
        for _, own in rows
    )
    return heat_map(
        HeatMap(
            "ablation-map",
            "Each variant less our default",
            f"{len(rows)} variants on {len(streams)} streams, difference of average accuracy in points",
            corner="variant",
            rows=tuple(some.name for some, _ in rows),
            columns=tuple(str(i + 1) for i in range(len(streams))),
            values=values,
            form=points,
            kind="change",
            x_name="stream",
            note="; ".join(f"{i}: {s.name}" for i, s in enumerate(streams, start=1)) + ".",
            least=0.02,
            tail=9,
        )
    )


def _dot(m: MethodFigures, found: Estimate) -> Dot:
    return Dot(m.name, found.mean, found.low, found.high, m.group)


def _s(things: Sequence[object]) -> str:
    return "" if len(things) == 1 else "s"
