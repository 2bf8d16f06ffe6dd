"""The one sentence that a comparison ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge_pslora.compare.methods import METHODS
from edge_pslora.compare.results import Result
from edge_pslora.compare.statistics import SIGNIFICANCE, judged, paired

ONE_POINT = 0.01  # what counts as a difference where one seed cannot tell, as for the gate


def recommendation(results: Sequence[Result]) -> str:
    """Which method to use: the cheapest in processor time of those that nothing is shown to be above.

    Only methods that keep no training samples are recommended; one that does, and is better still, is
    named beside. With several seeds "above" is Holm's correction of paired t-tests against the best at
    5 %, with one seed a point of accuracy.

    Raises:
        ValueError: no result of a method that can be used on a device.
    """
    runs = _by_seed(results)
    free = {key: own for key, own in runs.items() if not _bound(own) and not _stores(own)}
    if not free:
        raise ValueError("recommendation: expected a method that keeps no samples; found none")
    best = max(free, key=lambda key: _mean(free[key], "average"))
    equals = [key for key in free if key == best or not _below(free[key], free[best], free)]
    chosen = min(equals, key=lambda key: (_mean(free[key], "seconds"), key))
    text = f"Use {_name(chosen)}: {_mean(free[chosen], 'average'):.3f} at the end on average"
    if len(free) > 1:
        others = [key for key in equals if key != chosen]
        if others:
            text += f", not shown to be below {_listed(others)}, and the cheapest of them"
        else:
            text += ", above all others that keep no samples"
    stored = {key: own for key, own in runs.items() if _stores(own) and not _bound(own)}
    above = [k for k in stored if _mean(stored[k], "average") > _mean(free[best], "average")]
    if above:
        top = max(above, key=lambda key: _mean(stored[key], "average"))
        reached = _mean(stored[top], "average")
        text += f"; {_name(top)}, which keeps training samples, reached {reached:.3f}"
    seeds = len(next(iter(free.values())))
    return f"{text} ({'one seed: a hint, no proof' if seeds == 1 else f'{seeds} seeds'})."


Runs = Mapping[int, Result]  # by seed


def _by_seed(results: Sequence[Result]) -> dict[str, Runs]:
    found: dict[str, dict[int, Result]] = {}
    for result in results:
        found.setdefault(result.method, {})[result.seed] = result
    return dict(found.items())


def _below(own: Runs, best: Runs, family: Mapping[str, Runs]) -> bool:
    """Whether `own` is shown to be below the best."""
    if len(best) == 1:
        return _mean(best, "average") - _mean(own, "average") > ONE_POINT
    tests = {
        key: paired(_averages(runs), _averages(best))
        for key, runs in family.items()
        if runs is not best
    }
    key = next(key for key, runs in family.items() if runs is own)
    found = judged(tests, SIGNIFICANCE)[key]
    if found.p is None:  # no spread at all: the difference is what it is
        return found.paired.difference.mean < 0
    return found.verdict == "worse"


def _averages(runs: Runs) -> list[float]:
    return [runs[seed].average for seed in sorted(runs)]


def _mean(runs: Runs, name: str) -> float:
    return sum(float(getattr(r, name)) for r in runs.values()) / len(runs)


def _stores(runs: Runs) -> bool:
    return next(iter(runs.values())).stores_samples


def _bound(runs: Runs) -> bool:
    return next(iter(runs.values())).joint


def _name(key: str) -> str:
    return f"{key} ({METHODS[key].name})" if key in METHODS else key


def _listed(keys: Sequence[str]) -> str:
    shown = list(keys[:3]) + ([f"{len(keys) - 3} more"] if len(keys) > 3 else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
