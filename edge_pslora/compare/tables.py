"""The tables of a comparison: the same cells for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_pslora.charts.types import (
    NOTHING,
    Cell,
    Format,
    Table,
    count,
    number,
    percent,
    points,
    size,
)
from edge_pslora.compare.overall import Loss, OverallFigures, Target, ablation
from edge_pslora.compare.statistics import Estimate
from edge_pslora.compare.summary import MethodFigures, StreamFigures
from edge_pslora.units import format_duration


@dataclass(frozen=True)
class Sources:
    """Where the lines came from. Each is a sentence or less."""

    lines: int
    dates: str
    machines: tuple[str, ...]
    versions: tuple[str, ...]
    commits: tuple[str, ...]
    command: str


def with_interval(found: Estimate | None, form: Format) -> Cell:
    """Such as 83.1 % (82.0 to 84.2): the mean with its 95 % interval, or the mean alone."""
    if found is None:
        return Cell(NOTHING)
    text = form(found.mean)
    if found.low is not None and found.high is not None:
        low, high = (form(v).removesuffix(" %") for v in (found.low, found.high))
        text += f" ({low} to {high})"
    return Cell(text, found.mean)


def accuracy_table(stream: StreamFigures) -> Table:
    """What is learned and kept, and the verdict on our default."""
    header = (
        *("method", "average accuracy", "runs", "gap closed", "default is", "by points"),
        *("p (Holm)", "effect d", "learning", "backward", "forward", "forgetting"),
    )
    return Table(header, tuple(_accuracy_row(m) for m in stream.methods))


def _accuracy_row(m: MethodFigures) -> tuple[Cell, ...]:
    j = m.judgement
    return (
        Cell(m.name),
        with_interval(m.average, percent),
        number(float(m.runs), count),
        with_interval(m.gap, percent),
        Cell(NOTHING if j is None else j.verdict),
        Cell(NOTHING) if j is None else with_interval(j.paired.difference, points),
        number(None if j is None else j.p, p_value),
        number(None if j is None else j.paired.effect, lambda v: f"{v:+.1f}".replace("-", "−")),
        with_interval(m.learning, percent),
        with_interval(m.backward, points),
        with_interval(m.forward, points),
        with_interval(m.forgetting, points),
    )


def cost_table(stream: StreamFigures) -> Table:
    """What it takes: time and memory of a run, what is kept between sessions, what is trained."""
    header = (
        *("method", "processor time of a run", "peak memory", "kept between sessions"),
        *("trained parameters", "key"),
    )
    rows = tuple(
        (
            Cell(m.name),
            Cell(format_duration(m.seconds.mean), m.seconds.mean),
            number(float(m.peak_bytes), size),
            number(m.kept_bytes, size),
            number(m.trained, count),
            Cell(m.key),
        )
        for m in stream.methods
    )
    return Table(header, rows)


def streams_table(streams: Sequence[StreamFigures], keys: Sequence[str]) -> Table:
    """Every method on every stream: average accuracy in percent, and half of its 95 % interval."""
    rows = []
    for key in keys:
        own = [s.method(key) for s in streams]
        names = [m.name for m in own if m is not None]
        rows.append((Cell(names[0] if names else key), *(_average(m) for m in own)))
    return Table(("method", *(s.name for s in streams)), tuple(rows))


def _average(m: MethodFigures | None) -> Cell:
    if m is None:
        return Cell(NOTHING)
    mean, high = m.average.mean, m.average.high
    half = "" if high is None else f" ±{100 * (high - mean):.1f}"
    return Cell(f"{100 * mean:.1f}{half}", mean)


def overall_table(found: Sequence[OverallFigures]) -> Table:
    """Means over streams; and on how many of them our default is shown to be better or worse."""
    header = (
        *("method", "streams", "average accuracy", "learning", "backward", "gap closed"),
        *("default better", "worse", "not shown"),
    )
    rows = tuple(
        (
            Cell(f.name),
            number(float(f.streams), count),
            number(f.average, percent),
            number(f.learning, percent),
            number(f.backward, points),
            number(f.gap, percent),
            *(
                number(float(n) if f.better + f.worse + f.not_shown else None, count)
                for n in (f.better, f.worse, f.not_shown)
            ),
        )
        for f in found
    )
    return Table(header, rows)


def target_table(found: Sequence[Target]) -> Table:
    """Each target, and whether it is met."""
    words = {True: "met", False: "missed", None: "not measured"}
    rows = tuple(
        (
            Cell(t.figure),
            Cell(t.target),
            Cell(t.text, t.measured),
            number(float(t.streams), count),
            Cell(words[t.met]),
        )
        for t in found
    )
    return Table(("figure", "target", "measured", "streams", ""), rows)


def loss_table(found: Sequence[Loss]) -> Table:
    """Where another method has the higher mean."""
    rows = tuple(
        (
            Cell(f"{loss.stream}: {loss.method}"),
            Cell(loss.group),
            with_interval(loss.difference, points),
            number(loss.p, p_value),
            number(loss.alone, p_value),
            number(loss.effect, lambda v: f"{v:+.1f}".replace("-", "−")),
            Cell("worse" if loss.shown else "not shown"),
        )
        for loss in found
    )
    header = (
        "stream and method",
        "kind",
        "default less it, points",
        "p (Holm)",
        "p alone",
        "effect d",
        "shown",
    )
    return Table(header, rows)


def ablation_table(streams: Sequence[StreamFigures], keys: Sequence[str]) -> Table:
    """Each variant less our default, in points; with a star where the corrected test shows it."""
    rows = tuple(
        (Cell(some.name), *(_variant(m) for m in own)) for some, own in ablation(streams, keys)
    )
    return Table(("variant", *(s.name for s in streams)), rows)


def _variant(m: MethodFigures | None) -> Cell:
    if m is None or m.judgement is None:
        return Cell(NOTHING)
    change = -m.judgement.paired.difference.mean
    shown = "" if m.judgement.verdict == "not shown" else " *"
    return Cell(f"{points(change)}{shown}", change)


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
