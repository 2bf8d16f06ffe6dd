"""Streams of scores that stay as they are, and streams that fall: false alarms and late ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from edge_pslora.core import drift
from edge_pslora.core.drift import DriftDetector
from tests.torture.plan import Plan, Row

STABLE = 10_000
WITHIN = 200
# what is promised is one in 10,000 samples, hence one a stream: that would say little
FALSE_ALARMS = 0.05  # a stream
Draw = Callable[[np.random.Generator, int], npt.NDArray[np.float64]]


def _right(share: float) -> Draw:
    """1 and 0 for right and wrong."""
    return lambda rng, count: (rng.random(count) < share).astype(np.float64)


def _confidence(mean: float, weight: float) -> Draw:
    return lambda rng, count: rng.beta(mean * weight, (1 - mean) * weight, count)


def _sure_or_not(share: float) -> Draw:
    """Mostly near 1, else anywhere: what a softmax of a trained model looks like."""

    def draw(rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
        return np.where(rng.random(count) < share, 1 - 0.01 * rng.random(count), rng.random(count))

    return draw


# name -> as it is, and after the step
STREAMS: Mapping[str, tuple[Draw, Draw]] = {
    "right 0.99, then 0.84": (_right(0.99), _right(0.84)),
    "right 0.95, then 0.75": (_right(0.95), _right(0.75)),
    "right 0.90, then 0.65": (_right(0.90), _right(0.65)),
    "right 0.60, then 0.25": (_right(0.60), _right(0.25)),
    "confidence 0.9, then 0.75": (_confidence(0.9, 10), _confidence(0.75, 10)),
    "confidence 0.7, then 0.5": (_confidence(0.7, 5), _confidence(0.5, 5)),
    "confidence 0.5, then 0.3": (_confidence(0.5, 3), _confidence(0.3, 3)),
    "sure of 0.9, then of 0.5": (_sure_or_not(0.9), _sure_or_not(0.5)),
}


def rows(plan: Plan) -> list[Row]:
    streams = plan.size(20, 1)
    false = late = found = 0
    delays: list[int] = []
    for number, (before, after) in enumerate(STREAMS.values()):
        for stream in range(streams):
            rng = np.random.default_rng([plan.seed, number, stream])
            detector = DriftDetector()
            scores = before(rng, drift.REFERENCE + STABLE)
            false += sum(detector.update(score) for score in scores.tolist())
            detector = DriftDetector()
            for score in before(rng, drift.REFERENCE + WITHIN).tolist():
                detector.update(score)
            alarms = (i for i, s in enumerate(after(rng, STABLE).tolist(), 1) if detector.update(s))
            delay = next(alarms, STABLE)
            delays.append(delay)
            found += delay <= WITHIN
            late += delay > WITHIN
    count = streams * len(STREAMS)
    middle, most = sorted(delays)[count // 2], max(delays)
    return [
        Row(
            f"stable streams of {STABLE:,} samples: false alarms",
            count,
            false,
            count,
            FALSE_ALARMS * count,
        ),
        Row(
            f"steps not found within {WITHIN} samples",
            count,
            late,
            count,
            0,
            f"found after {middle} (median), {most} at most",
        ),
    ]


def _set_limit(limit: float) -> Callable[[], None]:
    def plant() -> None:
        drift.DriftDetector.__init__.__defaults__ = (drift.REFERENCE, 0.0, limit)

    return plant


PLANTS: Mapping[str, Callable[[], None]] = {
    "drift is seen everywhere": _set_limit(20.0),
    "drift is never seen": _set_limit(1e300),
}
