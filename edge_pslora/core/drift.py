"""Does a stream of scores still come from where it came from? One test for each sample, in constant memory.

A nonparametric e-detector (Shin, Ramdas, Rinaldo 2023, "E-detectors: a nonparametric framework for
sequential change detection", arXiv 2203.03532): scores in [0, 1] whose mean was at least m. For a bet
l in (0, 1 / (1 - m)) the product of 1 + l (m - x) is an e-process while the mean is at least m,
whatever the distribution; summed over all starts (Shiryaev-Roberts: R <- (R + 1) (1 + l (m - x))) it
has the mean n after n samples, so that it passes c within n samples with a chance of at most n / c
(Doob). Several bets are averaged: the best of them is not known before the change.

m is what a first part of the stream shows, less what chance may have added. No torch, no numpy.
"""

from __future__ import annotations

import math
from typing import Any

from edge_pslora.errors import UsageError

REFERENCE = 500  # samples that say what is normal
LIMIT = 2e4  # c: at most one false alarm in 20,000 samples; independent scores gave one in 900,000
CHANCE = 2.6  # standard errors below the reference's mean: a chance of one in two hundred
BETS = tuple(0.03 * 1.5**k for k in range(9))  # shares of the largest bet: 0.03 to 0.77


class DriftDetector:
    """Watches scores of single samples for a fall of their mean.

    A score is any number in [0, 1] that is high when all is well: the confidence of the model's answer,
    or 1 and 0 for right and wrong where the right answer comes to light. `update` takes one after the
    other. The first `reference` are taken as normal; after an alarm it starts anew, and takes the next
    ones as normal. What is promised of false alarms is promised of independent scores; where they
    depend on their neighbours (frames of one video), give every n-th.

    Args:
        reference: how many samples say what is normal, at least 50.
        tolerance: a fall that is not worth an alarm.
        limit: false alarms come once in `limit` samples or less often.
    """

    def __init__(
        self, reference: int = REFERENCE, tolerance: float = 0.0, limit: float = LIMIT
    ) -> None:
        _require(reference >= 50, "reference", "at least 50 samples", reference)
        _require(0 <= tolerance < 1, "tolerance", "0 or more and less than 1", tolerance)
        _require(limit > 1, "limit", "more than 1", limit)
        self._settings = {"reference": reference, "tolerance": tolerance, "limit": limit}
        self._start()

    def _start(self) -> None:
        self._count = 0
        self._sum = self._squares = 0.0
        self._evidence = [0.0] * len(BETS)

    @property
    def ready(self) -> bool:
        """Whether the reference is complete: before it no alarm is given."""
        return self._count >= self._settings["reference"]

    @property
    def normal(self) -> float | None:
        """The mean that scores have to keep; None before the reference is complete."""
        if not self.ready:
            return None
        # with a 0 and a 1 added, so that a reference without a single error is not taken for certainty
        count = self._settings["reference"] + 2
        mean = (self._sum + 1) / count
        variance = max((self._squares + 1) / count - mean * mean, 0.0)
        least = mean - CHANCE * math.sqrt(variance / count) - self._settings["tolerance"]
        return min(max(least, 0.0), 1 - 1e-6)

    def update(self, score: float) -> bool:
        """Takes the next score; True: the scores have fallen.

        Raises:
            UsageError: a score that is not in [0, 1].
        """
        _require(0 <= score <= 1, "a score", "a number from 0 to 1", score)
        normal = self.normal
        if normal is None:
            self._count += 1
            self._sum += score
            self._squares += score * score
            return False
        largest = 1 / (1 - normal)
        self._evidence = [
            (evidence + 1) * (1 + share * largest * (normal - score))
            for evidence, share in zip(self._evidence, BETS, strict=True)
        ]
        if sum(self._evidence) / len(BETS) < self._settings["limit"]:
            return False
        self._start()
        return True

    def to_dict(self) -> dict[str, Any]:
        """All that it remembers, as JSON values: a device that restarts goes on from there."""
        return {
            **self._settings,
            "count": self._count,
            "sum": self._sum,
            "squares": self._squares,
            "evidence": list(self._evidence),
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> DriftDetector:
        """What `to_dict` gave."""
        found = cls(state["reference"], state["tolerance"], state["limit"])
        found._count, found._sum = int(state["count"]), float(state["sum"])
        found._squares = float(state["squares"])
        found._evidence = [float(value) for value in state["evidence"]]
        return found


def _require(condition: bool, where: str, expected: str, found: object) -> None:
    if not condition:
        raise UsageError(where, expected=expected, found=repr(found), remedy="change the argument")
