"""The page of a whole workspace: what each generation learned and lost, in words, charts and tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edge_pslora.charts.extra import REMEDY, can_draw
from edge_pslora.charts.heat import HeatMap, heat_map
from edge_pslora.charts.lines import Line, Lines, line_chart
from edge_pslora.charts.types import Cell, Chart, Table, number, percent, size
from edge_pslora.pages.facts import (
    SIZE_NAMES,
    LayerFigures,
    SessionFigures,
    WorkspaceFigures,
    workspace_figures,
)
from edge_pslora.pages.render import render_page
from edge_pslora.pages.sessions import MOST_SESSIONS, session_texts
from edge_pslora.pages.words import METRIC_NAMES, forms
from edge_pslora.workspace.workspace import Workspace

MOST_GENERATIONS = 40  # in charts: the newest
MOST_TASKS = 60  # the oldest ten and the newest
MOST_LAYERS = 40  # those that changed most
_OLDEST = 10
NO_DRAWINGS = f"matplotlib is not installed, so this page has tables only; for charts: {REMEDY}"


@dataclass(frozen=True)
class Tile:
    """One of the main figures."""

    name: str
    cell: Cell
    more: str


def workspace_page(workspace: Workspace) -> str:
    """One self-contained HTML page from the manifests; see facts.workspace_figures for its errors."""
    return render_page("workspace.html", w=page_facts(workspace_figures(workspace)))


def page_facts(figures: WorkspaceFigures) -> dict[str, Any]:
    """What the template shows."""
    chain = figures.chain[-MOST_GENERATIONS:]
    sessions = session_texts(figures)
    count = len(figures.chain) + len(figures.others) + len(figures.refused)
    how = "Its own samples: held out, never trained on. Earlier sessions: their anchor samples."
    if count > len(sessions):
        how += f" The newest {MOST_SESSIONS} of {count} are shown."
    return {
        "name": figures.name,
        "model": figures.model,
        "task_type": figures.task_type,
        "base_bytes": figures.base_bytes,
        "current": figures.current,
        "sessions": sessions,
        "refused": sum(s.refused for s in sessions),
        "how": how,
        "notes": _notes(figures, len(chain)),
        "tiles": _tiles(figures),
        "charts": _charts(chain),
        "sizes": _size_table([*figures.chain, *figures.others]),
    }


def _notes(figures: WorkspaceFigures, shown: int) -> list[str]:
    notes = [] if can_draw() else [NO_DRAWINGS]
    damaged = [str(s.number) for s in figures.others if s.damage]
    if damaged:
        notes.append(
            f"Generation {', '.join(damaged)} cannot be read; edge-pslora status says why."
        )
    if len(figures.chain) > shown:
        notes.append(
            f"Charts show the newest {shown} of {len(figures.chain)} generations that led here."
        )
    return notes


def _tiles(figures: WorkspaceFigures) -> list[Tile]:
    if not figures.chain:
        return []
    last = figures.chain[-1]
    score, _ = forms(last.metric)
    name = METRIC_NAMES.get(last.metric, last.metric)
    known = list(last.by_task.values())
    mean = sum(known) / len(known) if known else None
    budget = "" if last.history_budget is None else f"of {size(last.history_budget)} allowed"
    disk = sum(s.bytes for s in (*figures.chain, *figures.others)) + figures.base_bytes
    return [
        Tile(f"{_capital(name)} on the last task", number(last.after, score), last.task),
        Tile("Mean over all tasks, now", number(mean, score), f"{len(known)} tasks"),
        Tile("Kept by the last session", number(last.retention, percent), "of what was known"),
        Tile(
            "Remembered history", number(last.history_bytes, size), budget or "same size for ever"
        ),
        Tile(
            "On disk", number(disk, size), f"{len(figures.chain) + len(figures.others)} generations"
        ),
    ]


def _charts(chain: Sequence[SessionFigures]) -> list[Chart]:
    scored = [s for s in chain if s.by_task]
    charts: list[Chart] = []
    if scored:
        charts += _task_charts(scored)
    layered = [s for s in chain if s.layers]
    if layered:
        charts += _layer_charts(layered)
    kept = [s for s in chain if s.history_bytes is not None]
    if kept:
        charts.append(_history_chart(kept))
    return charts


def _task_charts(chain: Sequence[SessionFigures]) -> list[Chart]:
    last = chain[-1]
    score, difference = forms(last.metric)
    metric = METRIC_NAMES.get(last.metric, last.metric)
    x = tuple(str(s.number) for s in chain)
    found = list(dict.fromkeys(task for s in chain for task in s.by_task))
    tasks = found[:_OLDEST] + found[_OLDEST:][-(MOST_TASKS - _OLDEST) :]
    less = "" if len(tasks) == len(found) else f" {len(found) - len(tasks)} tasks are not shown."
    lines = tuple(Line(task, tuple(s.by_task.get(task) for s in chain)) for task in tasks)
    means = tuple(sum(s.by_task.values()) / len(s.by_task) for s in chain)
    first = [next(v for v in line.values if v is not None) for line in lines]
    changes = tuple(
        tuple(None if v is None else v - start for v in line.values)
        for line, start in zip(lines, first, strict=True)
    )
    now = [(row[-1], line.name) for row, line in zip(changes, lines, strict=True)]
    falls = sorted((v, name) for v, name in now if v is not None)
    lost = (
        f"{falls[0][1]} changed most, by {difference(falls[0][0])}" if falls else "nothing is known"
    )
    mean = Line("mean of all so far", means) if len(lines) > 1 else None
    curves = Lines(
        "accuracy",
        f"{_capital(metric)} on each task",
        f"{metric} of {len(lines)} tasks over {len(x)} generations; the mean is now {score(means[-1])}",
        x_name="generation",
        y_name=metric,
        x=x,
        lines=lines,
        form=score,
        mean=mean,
        note=f"A line begins where its task was learned.{less}",
    )
    heat = HeatMap(
        "forgetting",
        "What was lost since it was learned",
        f"change of {metric} since each task was learned: {lost}",
        corner="task",
        rows=tuple(tasks),
        columns=x,
        values=changes,
        form=difference,
        kind="change",
        x_name="generation",
        note="A row is a task, a column a generation; the first score of a task is that on its own"
        f" held-out samples, later ones on its anchor samples.{less}",
        least=0.05,
    )
    return [line_chart(curves), heat_map(heat)]


def _layer_charts(chain: Sequence[SessionFigures]) -> list[Chart]:
    x = tuple(str(s.number) for s in chain)
    found = list(dict.fromkeys(name for s in chain for name in s.layers))
    sizes = {name: sum(_of(s, name, lambda f: f.update) or 0.0 for s in chain) for name in found}
    most = sorted(found, key=lambda name: -sizes[name])[:MOST_LAYERS]
    names = [name for name in found if name in most]
    less = (
        "" if len(names) == len(found) else f" The {len(names)} of {len(found)} that changed most."
    )
    prefix = _common_prefix(names)

    def of(take: Callable[[LayerFigures], float | None]) -> tuple[tuple[float | None, ...], ...]:
        return tuple(tuple(_of(s, name, take) for s in chain) for name in names)

    kinds: list[tuple[str, str, str, tuple[tuple[float | None, ...], ...]]] = [
        (
            "conflict",
            "Sign conflict per layer",
            "Share of the update's entries that point against the sum of all updates before.",
            of(lambda f: f.conflict),
        ),
        (
            "magnitude",
            "Size of the update per layer",
            "Norm of the session's update, relative to that of the base weight.",
            of(lambda f: f.update),
        ),
        (
            "refused",
            "What the merge did not take, per layer",
            "Share of the update's entries where the merge kept the past as it was.",
            of(lambda f: f.refused),
        ),
    ]
    charts = []
    for key, title, note, values in kinds:
        known = [v for row in values for v in row if v is not None]
        if not known:
            continue
        text = f"from {percent(min(known))} to {percent(max(known))} over {len(names)} layers"
        shared = f" All names begin with {prefix[:-1]}." if prefix else ""
        rows = tuple(name.removeprefix(prefix) for name in names)
        charts.append(
            heat_map(
                HeatMap(
                    key,
                    title,
                    text,
                    corner="layer",
                    rows=rows,
                    columns=x,
                    values=values,
                    form=_short_percent,
                    x_name="generation",
                    note=f"{note}{less}{shared}",
                    tail=11,
                )
            )
        )
    return charts


def _history_chart(chain: Sequence[SessionFigures]) -> Chart:
    values = tuple(s.history_bytes for s in chain)
    budgets = tuple(s.history_budget for s in chain)
    lines = [Line("history", values)]
    if any(b is not None for b in budgets):
        lines.append(Line("allowed", budgets))
    last = values[-1]
    assert last is not None
    return line_chart(
        Lines(
            "history-bytes",
            "What is remembered, in bytes",
            f"the compressed history of all updates has {size(last)} after {len(chain)} generations",
            x_name="generation",
            y_name="bytes",
            x=tuple(str(s.number) for s in chain),
            lines=tuple(lines),
            form=size,
            floor=0.0,
            note="The history of all sessions, as compressed factors: it does not grow with their number.",
        )
    )


def _size_table(sessions: Sequence[SessionFigures]) -> Table:
    there = sorted((s for s in sessions if s.sizes), key=lambda s: -(s.number or 0))
    rows = tuple(
        (Cell(str(s.number)), *(number(float(v), size) for v in (*_by_kind(s), s.bytes)))
        for s in there[:MOST_SESSIONS]
    )
    return Table(("generation", *SIZE_NAMES, "total"), rows)


def _by_kind(s: SessionFigures) -> list[int]:
    return [s.sizes[name] for name in SIZE_NAMES]


def _of(s: SessionFigures, name: str, take: Callable[[LayerFigures], float | None]) -> float | None:
    return take(s.layers[name]) if name in s.layers else None


def _common_prefix(names: Sequence[str]) -> str:
    """Up to a dot: what every name begins with says nothing."""
    if len(names) < 2:
        return ""
    low, high = min(names), max(names)
    same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[: low.rfind(".", 0, same) + 1]


def _short_percent(value: float) -> str:
    return f"{100 * value:.2g} %" if value < 0.1 else f"{100 * value:.0f} %"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
