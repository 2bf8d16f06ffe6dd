"""Timing things that are to be compared: in turn, in one process, so that a slow minute hits all."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping

Call = Callable[[], object]


def in_turn(calls: Mapping[str, Call], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each call in each round, by name; the rounds to warm up are not kept.

    Each round has an order of its own: what runs after torch finds its caches cold.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    order, names = random.Random(0), list(calls)
    for number in range(warm_up + rounds):
        order.shuffle(names)
        for name in names:
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
