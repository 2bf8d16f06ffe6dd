"""The page that a generation carries: what happened, in numbers, without network or scripts.

The pipeline fills a `ReportContext`; this file turns it into what report.html draws. Every text
is escaped by the template engine: names, labels and reasons come from the user's data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from edge_pslora.pages.render import page_environment

MAX_POINTS = 400
MAX_REJECTED = 50
MAX_LABELS = 60
MAX_SESSIONS = 30  # rows of the matrix; with every task of every session it grew with their square
OLDEST_TASKS = 10  # columns besides those of the sessions shown


@dataclass(frozen=True)
class CheckFacts:
    """One check before promotion. detail: the number measured and the one allowed."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class SessionFacts:
    """What one generation knew when it was made. accuracy: task name -> fraction."""

    generation: int
    task: str
    accuracy: Mapping[str, float]


@dataclass(frozen=True)
class LayerFacts:
    """One target layer. Fractions are 0 to 1; None where there is no past yet.

    relative_update: ||D|| / ||W0||, Frobenius.
    refused_share: entries of the update that the merge did not take.
    certificate: eps, the proven bound on the error of the remembered history.
    proven_share: entries whose remembered sign is proven, |S~| > eps.
    proven_weight: at least this share of the sum of |S| has the remembered sign.
    sign_agreement: entries of the update whose sign is that of the history.
    """

    name: str
    rank: int
    relative_update: float
    refused_share: float | None = None
    certificate: float | None = None
    proven_share: float | None = None
    proven_weight: float | None = None
    sign_agreement: float | None = None


@dataclass(frozen=True)
class LossPoint:
    """The loss at one step: the task's term and the weighted stability penalty."""

    step: int
    task: float
    penalty: float


@dataclass(frozen=True)
class FileFacts:
    """One file of the generation."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class ReportContext:
    """Everything the page shows. Accuracies are fractions; None where there is no number.

    metric: what "accuracy" means here: "accuracy", "token accuracy", or a score such as "R2" or "F1".
    retention: accuracy on the anchor samples after, relative to before.
    stages: (name, seconds) in order. settings: option -> value, as used.
    rejected: (where, reason) of rows that could not be read. notes: what was said of the run, in sentences.
    """

    generation: int
    promoted: bool
    reason: str
    task: str
    model: str
    created: str
    parent: int | None = None
    metric: str = "accuracy"
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    anchor_before: float | None = None
    anchor_after: float | None = None
    retention: float | None = None
    samples: int = 0
    holdout_samples: int = 0
    anchor_samples: int = 0
    steps: int = 0
    wall_seconds: float = 0.0
    peak_rss_bytes: int | None = None
    history_bytes: int = 0
    history_budget_bytes: int | None = None
    onnx_max_abs_error: float | None = None
    labels: Sequence[str] = ()
    checks: Sequence[CheckFacts] = ()
    sessions: Sequence[SessionFacts] = ()
    layers: Sequence[LayerFacts] = ()
    losses: Sequence[LossPoint] = ()
    stages: Sequence[tuple[str, float]] = ()
    files: Sequence[FileFacts] = ()
    rejected: Sequence[tuple[str, str]] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    notes: Sequence[str] = ()


def render_report(context: ReportContext) -> str:
    """One self-contained HTML page: no script, nothing loaded from anywhere."""
    environment = page_environment()
    environment.filters |= {
        "score": lambda value: _score(value, context.metric),
        "share": lambda value: "–" if value is None else f"{100 * value:.1f} %",
        "short": lambda value: "–" if value is None else f"{value:.2g}",
    }
    source = (files("edge_pslora") / "report.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        c=context,
        matrix=_matrix(context.sessions, context.metric),
        charts=_charts(context.losses),
        stages=_stages(context.stages),
        agreement=any(layer.sign_agreement is not None for layer in context.layers),
        largest_update=max((layer.relative_update for layer in context.layers), default=0.0),
        labels=list(context.labels)[:MAX_LABELS],
        rejected=list(context.rejected)[:MAX_REJECTED],
    )


def _score(value: float | None, metric: str) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if metric.endswith("accuracy") else f"{value:.3f}"


def _matrix(sessions: Sequence[SessionFacts], metric: str) -> dict[str, Any] | None:
    """The accuracy matrix: one row per generation, one column per task in order of appearance.

    Of many: the last generations, the tasks that they learned and the oldest.
    """
    sessions = sessions[-MAX_SESSIONS:]
    found = list(dict.fromkeys(task for session in sessions for task in session.accuracy))
    tasks = found[:OLDEST_TASKS] + found[OLDEST_TASKS:][-MAX_SESSIONS:]
    values = [session.accuracy[t] for session in sessions for t in tasks if t in session.accuracy]
    if not values:
        return None
    # Colours span the values there are: accuracies of 0.91 and 0.97 have to look different.
    low, high = min(values), max(values)
    first: dict[str, float] = {}
    rows = []
    for session in sessions:
        cells: list[dict[str, Any] | None] = []
        for task in tasks:
            value = session.accuracy.get(task)
            if value is None:
                cells.append(None)
                continue
            change = value - first[task] if task in first else None
            first.setdefault(task, value)
            heat = (value - low) / (high - low) if high > low else 0.5
            cells.append(
                {
                    "text": _score(value, metric),
                    "heat": 12 + 78 * heat,
                    "deep": heat > 0.85,  # where white text reads better than dark
                    "change": None if change is None else _change(change, metric),
                }
            )
        rows.append({"generation": session.generation, "task": session.task, "cells": cells})
    return {
        "tasks": tasks,
        "rows": rows,
        "low": low,
        "high": high,
        "left_out": len(found) - len(tasks),
        "older": len(sessions[0].accuracy) > 1,  # what was learned before the first row
    }


def _change(change: float, metric: str) -> str:
    text = f"{100 * change:+.1f}" if metric.endswith("accuracy") else f"{change:+.3f}"
    return text.replace("-", "−")


def _charts(losses: Sequence[LossPoint]) -> list[dict[str, Any]]:
    """Two lines with their own scales; a penalty that is zero throughout is left out."""
    if len(losses) < 2:
        return []
    stride = -(-len(losses) // MAX_POINTS)
    # The last point is always kept, so that the line ends where training ended.
    points = sorted({*range(0, len(losses), stride), len(losses) - 1})
    kept = [losses[i] for i in points]
    series = [("Task loss", "task", [p.task for p in kept])]
    if any(p.penalty > 0 for p in kept):
        series.append(("Stability penalty, weighted", "penalty", [p.penalty for p in kept]))
    first, last = kept[0].step, kept[-1].step
    width = max(last - first, 1)
    charts = []
    for title, kind, values in series:
        top = max(values) or 1.0
        line = " ".join(
            f"{1000 * (p.step - first) / width:.1f},{100 - 100 * min(max(v / top, 0), 1):.2f}"
            for p, v in zip(kept, values, strict=True)
        )
        charts.append(
            {
                "title": title,
                "kind": kind,
                "line": line,
                "top": f"{top:.3g}",
                "middle": f"{top / 2:.3g}",
                "from": f"{values[0]:.3g}",
                "to": f"{values[-1]:.3g}",
                "first": first,
                "last": last,
            }
        )
    return charts


def _stages(stages: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    longest = max((seconds for _, seconds in stages), default=0.0) or 1.0
    return [
        {"name": name, "seconds": seconds, "width": 100 * seconds / longest}
        for name, seconds in stages
    ]
