"""Which layers stay in float: the fewest that keep the loss within what is allowed. Pure: no files.

1. Everything in int8. Good enough: done.
2. Rank: how far the outputs move when one group of layers alone is in int8.
3. The worst 1, 2, 4, ... groups in float until it is good enough, then bisection in between.
4. Of those, the mildest half, then quarters, and so on go back to int8 where that is still good enough:
   the figure of a few hundred samples is rough, and step 3 may have stopped late.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

MOST_RATINGS = 48  # models with more layers than this are searched in groups of neighbours
MOST_RETURNS = 12  # evaluations of step 4

Drop = Callable[[frozenset[str]], float]  # layers in float -> what the headline figure loses
Error = Callable[[frozenset[str]], float]  # layers in int8, all others in float -> output error


@dataclass(frozen=True)
class Found:
    """in_float: layers, in the model's order. drop: with these. enough: drop <= what is allowed.

    evaluations: calls of `drop`; ratings: calls of `error`.
    """

    in_float: tuple[str, ...]
    drop: float
    enough: bool
    evaluations: int
    ratings: int


def search(layers: Sequence[str], drop: Drop, error: Error, allowed: float) -> Found:
    """At most MOST_RATINGS calls of `error` and 1 + 2 log2(MOST_RATINGS) + MOST_RETURNS of `drop`.

    Args:
        layers: names, in the model's order; at least one.
        allowed: the largest drop. A drop that is not a number is never allowed.

    Returns:
        What was found; not enough: even with one group alone in int8 too much is lost.
    """
    seen: dict[frozenset[int], float] = {}
    groups = _groups(layers)

    def lost(in_float: frozenset[int]) -> float:
        if in_float not in seen:
            seen[in_float] = drop(_names(groups, in_float))
        return seen[in_float]

    def good(in_float: frozenset[int]) -> bool:
        return lost(in_float) <= allowed

    def found(in_float: frozenset[int], ratings: int) -> Found:
        names = _names(groups, in_float)
        ordered = tuple(name for name in layers if name in names)
        return Found(ordered, lost(in_float), good(in_float), len(seen), ratings)

    nothing: frozenset[int] = frozenset()
    if good(nothing) or len(groups) == 1:
        return found(nothing, 0)
    errors = [error(_names(groups, frozenset({k}))) for k in range(len(groups))]
    # NaN first: a layer whose outputs are not numbers is the worst of all
    ranked = sorted(range(len(groups)), key=lambda k: (errors[k] == errors[k], -errors[k], k))
    count = _fewest(ranked, good)
    in_float = frozenset(ranked[:count])
    if not good(in_float):
        return found(in_float, len(groups))
    return found(_returned(ranked[:count], good), len(groups))


def _returned(kept: Sequence[int], good: Callable[[frozenset[int]], bool]) -> frozenset[int]:
    """kept: worst first, good as a whole. A subset that is good too."""
    left = list(kept)
    size, tries = len(left) // 2, 0
    while size >= 1:
        end = len(left)
        while end > 0 and tries < MOST_RETURNS:
            fewer = left[: max(end - size, 0)] + left[end:]
            tries += 1
            if fewer and good(frozenset(fewer)):
                left = fewer
            end -= size
        size //= 2
    return frozenset(left)


def _fewest(ranked: Sequence[int], good: Callable[[frozenset[int]], bool]) -> int:
    """The smallest good prefix that doubling and bisection find; all but one where none is good."""
    most = len(ranked) - 1
    low, high = 0, 1
    while high < most and not good(frozenset(ranked[:high])):
        low, high = high, min(2 * high, most)
    if not good(frozenset(ranked[:high])):
        return most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if good(frozenset(ranked[:middle])) else (middle, high)
    return high


def _groups(layers: Sequence[str]) -> list[tuple[str, ...]]:
    """Neighbours together, so that there are at most MOST_RATINGS groups."""
    size = -(-len(layers) // MOST_RATINGS)
    return [tuple(layers[k : k + size]) for k in range(0, len(layers), size)]


def _names(groups: Sequence[tuple[str, ...]], chosen: frozenset[int]) -> frozenset[str]:
    return frozenset(name for k in chosen for name in groups[k])
