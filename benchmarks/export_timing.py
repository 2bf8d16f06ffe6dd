"""Timing things that are to be compared: in turn, in one process, so that a slow minute hits all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

Call = Callable[[], object]


def in_turn(calls: Mapping[str, Call], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each call in each round, by name; the rounds to warm up are not kept.

    Each round begins with another call: what runs after torch finds its caches cold.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(warm_up + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            call = calls[name]
            start = time.perf_counter()
            call()
            seconds = time.perf_counter() - start
            if number >= warm_up:
                taken[name].append(seconds)
    return taken


def ratios(taken: Mapping[str, list[float]], one: str, other: str) -> list[float]:
    """one / other, round by round."""
    return [a / b for a, b in zip(taken[one], taken[other], strict=True)]
