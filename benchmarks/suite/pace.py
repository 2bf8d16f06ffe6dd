"""How long the rest of a suite will take, from what its runs took so far."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.suite.plan import Group
from benchmarks.suite.processes import Ended
from edge_pslora.compare.results import Result
from edge_pslora.units import format_duration

Kind = tuple[str, str]  # stream, method


class Pace:
    """Runs that are left and the seconds of those like them."""

    def __init__(self, groups: Sequence[Group], results: Sequence[Result], jobs: int) -> None:
        self.jobs = jobs
        self.waiting = [(g.stream.key, g.seed, m.key) for g in groups for m in g.methods]
        self.total = len(self.waiting)
        self.seconds: dict[Kind, list[float]] = {}
        for result in results:
            self.seconds.setdefault((result.stream, result.method), []).append(result.seconds)

    @property
    def done(self) -> int:
        return self.total - len(self.waiting)

    def add(self, ended: Ended) -> None:
        if not ended.method:
            if ended.problem:  # none of the group's runs will come
                gone = (ended.stream, ended.seed)
                self.waiting = [w for w in self.waiting if (w[0], w[1]) != gone]
            return
        self.waiting.remove((ended.stream, ended.seed, ended.method))
        if not ended.problem:
            self.seconds.setdefault((ended.stream, ended.method), []).append(ended.seconds)

    def left(self) -> str:
        """In words; a run of a kind that was never seen takes what its stream's, or all, take."""
        if not self.seconds:
            return "time left unknown"
        total = sum(self._expected(stream, method) for stream, _, method in self.waiting)
        return f"about {format_duration(total / self.jobs)} left"

    def _expected(self, stream: str, method: str) -> float:
        same = self.seconds.get((stream, method))
        if same is None:
            same = [s for (key, _), seen in self.seconds.items() if key == stream for s in seen]
        return _mean(same or [s for seen in self.seconds.values() for s in seen])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
