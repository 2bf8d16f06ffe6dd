"""From the lines of a comparison to what they show: every method on every stream, against our default.

A run is one order with one seed; two methods are paired over the runs that both have. The family of
Holm's correction is one stream in one setting: our default against every other method there, but joint
training, which is an upper bound and no method of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edge_pslora.compare.results import Result
from edge_pslora.compare.statistics import (
    Estimate,
    Judgement,
    estimate,
    gap_share,
    judged,
    paired,
)

DEFAULT, SEQUENTIAL, FROZEN = "pslora", "sequential", "frozen"

Run = tuple[int, int]  # order, seed


@dataclass(frozen=True)
class MethodFigures:
    """One method on one stream. group: as in charts.dots. None: undefined, or not compared.

    gap: share of the gap between SEQUENTIAL and the stream's bound that it closes. judgement: DEFAULT
    minus this one. curve: mean score over the tasks so far, after each session, mean over the runs of
    the first order. matrix: mean over the same runs. peak: the most of any run.
    """

    key: str
    name: str
    group: str
    runs: int
    average: Estimate
    learning: Estimate | None
    backward: Estimate | None
    forward: Estimate | None
    forgetting: Estimate | None
    seconds: Estimate
    peak_bytes: int
    kept_bytes: float
    trained: float
    gap: Estimate | None
    judgement: Judgement | None
    curve: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class StreamFigures:
    """One stream in one setting; methods: in the order of the table.

    tasks: their names in the first order; just numbered where its runs have different ones.
    bound: key of the best joint training there is, by its mean; None: there is none. learning_lost:
    SEQUENTIAL's learning accuracy minus DEFAULT's, over the runs that both have.
    """

    stream: str
    setting: str
    tasks: tuple[str, ...]
    orders: tuple[int, ...]
    seeds: tuple[int, ...]
    methods: tuple[MethodFigures, ...]
    bound: str | None
    learning_lost: Estimate | None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.stream}, {self.setting}"

    def method(self, key: str) -> MethodFigures | None:
        return next((m for m in self.methods if m.key == key), None)


def summarised(
    results: Sequence[Result],
    names: Mapping[str, str],
    *,
    part: str = "test",
    ours: Callable[[str], bool] = lambda key: key.startswith(DEFAULT),
) -> tuple[StreamFigures, ...]:
    """Every stream and setting there is, in order of appearance.

    Args:
        names: key -> what people call the method, in the order of the table; others follow it.
        ours: which methods are this project's.
    """
    of_part = [r for r in results if r.part == part]
    places = list(dict.fromkeys((r.stream, r.setting) for r in of_part))
    order = {key: i for i, key in enumerate(names)}
    found = []
    for stream, setting in places:
        lines = [r for r in of_part if (r.stream, r.setting) == (stream, setting)]
        runs, notes = _latest(lines)
        keys = sorted(runs, key=lambda key: order.get(key, len(order)))
        found.append(_stream({key: runs[key] for key in keys}, names, ours, notes))
    return tuple(found)


def _latest(lines: Sequence[Result]) -> tuple[dict[str, dict[Run, Result]], list[str]]:
    """method -> run -> its newest line of the newest configuration; and what was left out."""
    digest = max(lines, key=lambda line: line.date).digest
    current = [line for line in lines if line.digest == digest]
    newest: dict[tuple[str, Run], Result] = {}
    for line in current:
        key = (line.method, (line.order, line.seed))
        if key not in newest or line.date >= newest[key].date:
            newest[key] = line
    notes = []
    if len(newest) < len(current):
        notes.append(f"{len(current) - len(newest)} older lines of the same runs are left out")
    if len(current) < len(lines):
        others = len(lines) - len(current)
        notes.append(f"{others} lines of another configuration than the newest are left out")
    runs: dict[str, dict[Run, Result]] = {}
    for (method, run), line in sorted(newest.items(), key=lambda item: item[0]):
        runs.setdefault(method, {})[run] = line
    return runs, notes


def _stream(
    runs: Mapping[str, Mapping[Run, Result]],
    names: Mapping[str, str],
    ours: Callable[[str], bool],
    notes: Sequence[str],
) -> StreamFigures:
    everything = [line for lines in runs.values() for line in lines.values()]
    sample = min(everything, key=lambda line: line.order)
    named = {line.tasks for line in everything if line.order == sample.order}
    # where each seed draws its own order, a place in it is all that the runs have in common
    places = tuple(f"task {i + 1}" for i in range(len(sample.tasks)))
    default = runs.get(DEFAULT, {})
    family = {}
    for key, lines in runs.items():
        both = sorted(default.keys() & lines.keys())
        if key != DEFAULT and both and not _any(lines).joint:
            pair = ([default[r].average for r in both], [lines[r].average for r in both])
            family[key] = paired(*pair)
    judgements = judged(family)
    bound = _bound(runs)
    low, high = runs.get(SEQUENTIAL, {}), {} if bound is None else runs[bound]
    methods = tuple(
        _method(
            key,
            names.get(key, key),
            lines,
            _gap(lines, low, high),
            judgements.get(key),
            ours(key),
        )
        for key, lines in runs.items()
    )
    every = {run for lines in runs.values() for run in lines}
    short = [m.name for m in methods if m.runs < len(every)]
    more = [f"not of all {len(every)} runs: {', '.join(short)}"] if short else []
    sequential = runs.get(SEQUENTIAL, {})
    both = sorted(default.keys() & sequential.keys())
    lost = [
        theirs - mine
        for run in both
        if (theirs := sequential[run].learning) is not None
        and (mine := default[run].learning) is not None
    ]
    return StreamFigures(
        stream=sample.stream,
        setting=sample.setting,
        tasks=sample.tasks if len(named) == 1 else places,
        orders=tuple(sorted({order for order, _ in every})),
        seeds=tuple(sorted({seed for _, seed in every})),
        methods=methods,
        bound=bound,
        learning_lost=estimate(lost) if lost else None,
        notes=(*notes, *more),
    )


def _method(
    key: str,
    name: str,
    lines: Mapping[Run, Result],
    gap: Estimate | None,
    judgement: Judgement | None,
    ours: bool,
) -> MethodFigures:
    some = _any(lines)
    results = list(lines.values())
    group = "our variants" if ours else "other"
    if key == DEFAULT:
        group = "our default"
    elif some.joint or some.stores_samples:
        group = "joint" if some.joint else "stored samples"
    first = [r for (order, _), r in lines.items() if order == min(o for o, _ in lines)]
    mean = tuple(
        tuple(sum(cells) / len(cells) for cells in zip(*rows, strict=True))
        for rows in zip(*(r.matrix for r in first), strict=True)
    )
    return MethodFigures(
        key=key,
        name=name,
        group=group,
        runs=len(lines),
        average=estimate([r.average for r in results]),
        learning=_estimate([r.learning for r in results]),
        backward=_estimate([r.backward for r in results]),
        forward=_estimate([r.forward for r in results]),
        forgetting=_estimate([r.forgetting for r in results]),
        seconds=estimate([r.seconds for r in results]),
        peak_bytes=max(r.peak_bytes for r in results),
        kept_bytes=sum(r.kept_bytes for r in results) / len(results),
        trained=sum(r.trained for r in results) / len(results),
        gap=gap,
        judgement=judgement,
        curve=tuple(sum(row[: i + 1]) / (i + 1) for i, row in enumerate(mean))
        if len(mean) == len(mean[0])
        else (),
        matrix=mean,
    )


def _bound(runs: Mapping[str, Mapping[Run, Result]]) -> str | None:
    """Joint training on few samples with a head trained by SGD can be below what learns task after task:
    the best of those that were run is the bound."""
    means = {
        key: sum(r.average for r in lines.values()) / len(lines)
        for key, lines in runs.items()
        if _any(lines).joint
    }
    return max(means, key=lambda key: means[key], default=None)


def _gap(
    lines: Mapping[Run, Result], low: Mapping[Run, Result], high: Mapping[Run, Result]
) -> Estimate | None:
    common = sorted(lines.keys() & low.keys() & high.keys())
    if not common:
        return None
    sequential, joint, ours = (
        [found[run].average for run in common] for found in (low, high, lines)
    )
    return gap_share(sequential, joint, ours)


def _estimate(values: Sequence[float | None]) -> Estimate | None:
    known = [v for v in values if v is not None]
    return estimate(known) if known else None


def _any(lines: Mapping[Run, Result]) -> Result:
    return next(iter(lines.values()))
