"""What a session learned and lost, and why the gate decided, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edge_pslora.pages.facts import SessionFigures, WorkspaceFigures
from edge_pslora.pages.words import METRIC_NAMES, forms

MOST_SESSIONS = 100
_MOST_LOST = 3


@dataclass(frozen=True)
class SessionText:
    """One block of the page."""

    number: int | None
    task: str
    created: str
    parent: int | None
    samples: int | None
    size: int
    learned: str
    kept: str
    reason: str
    current: bool
    refused: bool
    aside: bool
    damage: str


def session_texts(figures: WorkspaceFigures) -> list[SessionText]:
    """Newest first; of very many the newest."""
    by_number = {s.number: s for s in (*figures.chain, *figures.others) if s.number}
    chain = {s.number for s in figures.chain}
    sessions = [*figures.chain, *figures.others, *figures.refused]
    sessions.sort(key=lambda s: (s.created, s.number or 0), reverse=True)
    return [
        SessionText(
            number=s.number,
            task=s.task,
            created=s.created.replace("T", " ").replace("Z", " UTC"),
            parent=s.parent,
            samples=s.samples,
            size=s.bytes,
            learned=_learned(s),
            kept=_kept(s, by_number),
            reason=s.reason or "no reason on record",
            current=s.number is not None and s.number == figures.current,
            refused=s.number is None,
            aside=s.number is not None and s.number not in chain,
            damage=s.damage,
        )
        for s in sessions[:MOST_SESSIONS]
    ]


def _learned(s: SessionFigures) -> str:
    score, difference = forms(s.metric)
    name = METRIC_NAMES.get(s.metric, s.metric)
    if s.after is None:
        text = f"{name} not on record"
    elif s.before is None:
        text = f"{name} {score(s.after)} on its held-out samples"
    else:
        text = f"{name} {score(s.before)} → {score(s.after)} ({difference(s.after - s.before)})"
        text += " on its held-out samples"
    if s.new_labels:
        text += f"; {s.new_labels} new label{'s' if s.new_labels > 1 else ''}, {s.labels} in all"
    return text


def _kept(s: SessionFigures, by_number: Mapping[int, SessionFigures]) -> str:
    if s.anchor_before is None or s.anchor_after is None:
        return "nothing was known before" if s.parent is None else "not on record"
    score, difference = forms(s.metric)
    change = difference(s.anchor_after - s.anchor_before)
    kept = f"{score(s.anchor_before)} → {score(s.anchor_after)} ({change}) on samples of earlier"
    kept += " sessions"
    parent = None if s.parent is None else by_number.get(s.parent)
    before = {} if parent is None else parent.by_task
    falls = sorted(
        (s.by_task[task] - value, task) for task, value in before.items() if task in s.by_task
    )
    told = [(task, difference(fall)) for fall, task in falls[:_MOST_LOST]]
    lost = [f"{task} {text}" for task, text in told if text.startswith("−")]
    return f"{kept}; lost most: {', '.join(lost)}" if lost else kept
