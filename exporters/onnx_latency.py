"""How long two ONNX files take for the same samples, side by side. No torch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_pslora.exporters.run import OnnxRunner, open_onnx

ROUNDS = 40
SECONDS = 20.0  # no new round begins after that, once LEAST_ROUNDS are done
LEAST_ROUNDS = 5
_WARM_UP = 2


@dataclass(frozen=True)
class Compared:
    """Milliseconds a run (median), and how many times as fast the second is: median and quartiles."""

    first_ms: float
    second_ms: float
    speedup: float
    low: float
    high: float
    rounds: int


def side_by_side(
    first: Path, second: Path, samples: Sequence[Mapping[str, npt.NDArray[Any]]]
) -> Compared:
    """Both on one thread, in turns, one sample a round: what else the machine does hits both.

    The time is the thread's own: the latency of a machine that has nothing else to do.

    Args:
        samples: at least one batch.
    """
    runners = [open_onnx(path, threads=1) for path in (first, second)]
    for runner in runners:
        for sample in samples[:_WARM_UP]:
            runner.run(sample)
    times: list[tuple[float, float]] = []
    started = time.monotonic()
    while len(times) < ROUNDS:
        if len(times) >= LEAST_ROUNDS and time.monotonic() - started > SECONDS:
            break
        number = len(times)
        sample = samples[number % len(samples)]
        order = (0, 1) if number % 2 == 0 else (1, 0)
        taken = {which: _seconds(runners[which], sample) for which in order}
        times.append((taken[0], taken[1]))
    table = np.array(times)  # [rounds, 2]
    medians = np.median(table, axis=0) * 1e3
    low, middle, high = np.percentile(table[:, 0] / table[:, 1], [25, 50, 75])
    return Compared(
        float(medians[0]), float(medians[1]), float(middle), float(low), float(high), len(times)
    )


def _seconds(runner: OnnxRunner, sample: Mapping[str, npt.NDArray[Any]]) -> float:
    start = time.thread_time()
    runner.run(sample)
    return max(time.thread_time() - start, 1e-9)
