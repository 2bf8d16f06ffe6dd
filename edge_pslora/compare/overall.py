"""What all streams together show: means over streams, the targets, the ablation, and where it loses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from edge_pslora.charts.types import NOTHING, Format, count, percent, points
from edge_pslora.compare.statistics import Estimate, judged
from edge_pslora.compare.summary import DEFAULT, FROZEN, MethodFigures, StreamFigures

RESERVOIR = "pslora+replay+analytic"  # the variant that keeps one sample of a hundred


@dataclass(frozen=True)
class OverallFigures:
    """One method over the streams that have it; means of means. better: on how many streams our default
    is shown to be better than it; worse, not_shown: alike. gaps: how many streams have a gap to close."""

    key: str
    name: str
    group: str
    streams: int
    average: float
    learning: float | None
    backward: float | None
    gap: float | None
    gaps: int
    better: int
    worse: int
    not_shown: int


@dataclass(frozen=True)
class Target:
    """measured: None where the lines do not say, and so is met. streams: how many it is a figure of."""

    figure: str
    target: str
    measured: float | None
    text: str
    met: bool | None
    streams: int


@dataclass(frozen=True)
class Loss:
    """A stream where a method has the higher mean. shown: by the corrected test, whose p it is.

    alone: p of the same test, were this method the only one; None: there was no test."""

    stream: str
    method: str
    group: str
    difference: Estimate
    p: float | None
    alone: float | None
    effect: float | None
    shown: bool


def overall(streams: Sequence[StreamFigures]) -> tuple[OverallFigures, ...]:
    """In the order of the table."""
    keys = list(dict.fromkeys(m.key for s in streams for m in s.methods))
    longest = max(streams, key=lambda s: len(s.methods), default=None)
    if longest is not None:
        order = {m.key: i for i, m in enumerate(longest.methods)}
        keys.sort(key=lambda key: order.get(key, len(order)))
    found = []
    for key in keys:
        own = [m for s in streams if (m := s.method(key)) is not None]
        gaps = [m.gap.mean for m in own if m.gap is not None]
        verdicts = [m.judgement.verdict for m in own if m.judgement is not None]
        found.append(
            OverallFigures(
                key=key,
                name=own[0].name,
                group=own[0].group,
                streams=len(own),
                average=_mean([m.average.mean for m in own]) or 0.0,
                learning=_mean([m.learning.mean for m in own if m.learning is not None]),
                backward=_mean([m.backward.mean for m in own if m.backward is not None]),
                gap=_mean(gaps),
                gaps=len(gaps),
                better=verdicts.count("better"),
                worse=verdicts.count("worse"),
                not_shown=verdicts.count("not shown"),
            )
        )
    return tuple(found)


def targets(
    streams: Sequence[StreamFigures], other_tasks: Collection[str] = ()
) -> tuple[Target, ...]:
    """What issue 7 asked for. other_tasks: streams that are not classification.

    Better than the frozen network is one question to each stream, asked before there were lines, so its
    family for Holm's correction is the streams; a method beside many others has these for its family.
    What has to be shown is measured where it can be, which a single run cannot.
    """
    classes = [s for s in streams if s.stream not in other_tasks]
    closed = [g for s in classes if (g := _gap_of(s, DEFAULT)) is not None]
    lost = [s.learning_lost.mean for s in streams if s.learning_lost is not None]
    beaten = [s for s in streams if any(x.shown for x in losses([s]) if _is_rival(x.group))]
    tried = [s for s in streams if any(_is_rival(m.group) and _is_repeated(m) for m in s.methods)]
    beside = {
        s.name: m.judgement.paired
        for s in classes
        if (m := s.method(FROZEN)) and m.judgement and _is_repeated(m)
    }
    frozen = [judgement.verdict for judgement in judged(beside).values()]
    replay = [g for s in classes if (g := _gap_of(s, RESERVOIR)) is not None]
    share = frozen.count("better") / len(frozen) if frozen else None
    beaten_on = float(len(beaten)) if tried else None
    return (
        _target(
            "share of the gap closed without stored samples, mean",
            *(">= 90 %", _mean(closed), len(closed), lambda v: v >= 0.90, percent),
        ),
        _target(
            "streams where a replay-free method is shown to be better",
            *("0", beaten_on, len(tried), lambda v: v == 0, count),
        ),
        _target(
            "learning accuracy lost against sequential LoRA, mean, points",
            *("<= 1", _mean(lost), len(lost), lambda v: v <= 0.01, points),
        ),
        _target(
            "streams where it is shown to be better than the frozen network",
            *(">= 70 %", share, len(frozen), lambda v: v >= 0.70, percent),
        ),
        _target(
            "share of the gap closed with a reservoir of 1 %, mean",
            *(">= 97 %", _mean(replay), len(replay), lambda v: v >= 0.97, percent),
        ),
    )


def _is_repeated(method: MethodFigures) -> bool:
    return method.judgement is not None and method.judgement.paired.difference.seeds > 1


def _target(
    figure: str,
    target: str,
    measured: float | None,
    streams: int,
    meets: Callable[[float], bool],
    form: Format,
) -> Target:
    if measured is None:
        return Target(figure, target, None, NOTHING, None, streams)
    return Target(figure, target, measured, form(measured), meets(measured), streams)


def losses(streams: Sequence[StreamFigures]) -> tuple[Loss, ...]:
    """Everything with a higher mean than our default, joint training aside; the shown ones first."""
    found = [
        Loss(
            s.name,
            m.name,
            m.group,
            m.judgement.paired.difference,
            m.judgement.p,
            m.judgement.paired.p,
            m.judgement.paired.effect,
            m.judgement.verdict == "worse",
        )
        for s in streams
        for m in s.methods
        if m.judgement is not None and m.judgement.paired.difference.mean < 0
    ]
    return tuple(sorted(found, key=lambda loss: (not loss.shown, loss.difference.mean)))


def ablation(
    streams: Sequence[StreamFigures], keys: Sequence[str]
) -> tuple[tuple[MethodFigures, tuple[MethodFigures | None, ...]], ...]:
    """For each of the keys that some stream has: an example, and its figures stream by stream."""
    rows = []
    for key in keys:
        own = tuple(s.method(key) for s in streams)
        some = next((m for m in own if m is not None), None)
        if some is not None:
            rows.append((some, own))
    return tuple(rows)


def _gap_of(stream: StreamFigures, key: str) -> float | None:
    """At most all of it: more on one stream does not make up for less on another."""
    method = stream.method(key)
    return None if method is None or method.gap is None else min(method.gap.mean, 1.0)


def _is_rival(group: str) -> bool:
    return group in ("other", "our variants")


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
