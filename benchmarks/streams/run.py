"""Runs a plan: adapt, eval, adapt, eval, ...; and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.streams.command import REFUSED, edge_pslora
from benchmarks.streams.plan import Plan, Test
from edge_pslora.workspace.layout import ANCHOR, HEAD, HISTORY, MODEL

STATE = (HISTORY, HEAD, ANCHOR)


@dataclass(frozen=True)
class SessionRun:
    """One adapt. before, after: the score on its own held-out samples. state_bytes: what is kept for
    later sessions: history, head and anchor files."""

    name: str
    generation: int | None
    promoted: bool
    reason: str
    samples: int
    before: float | None
    after: float | None
    retention: float | None
    history_bytes: int
    state_bytes: int
    peak_rss_bytes: int
    seconds: float


@dataclass(frozen=True)
class TestRun:
    """One test. learned: its score just after it was learned; best: the best so far; end: at the end,
    all by onnxruntime; agreement, error: of the ONNX file with torch, at the end."""

    __test__ = False

    name: str
    metric: str
    samples: int
    learned: float
    best: float
    end: float
    agreement: float
    error: float


@dataclass(frozen=True)
class StreamResult:
    sessions: tuple[SessionRun, ...]
    tests: tuple[TestRun, ...]
    seconds: float

    @property
    def average(self) -> float:
        return _mean([test.end for test in self.tests])

    @property
    def learning(self) -> float:
        return _mean([test.learned for test in self.tests])

    @property
    def backward(self) -> float | None:
        """Mean change since learning, over what was learned before the last session."""
        earlier = self.tests[:-1]
        return _mean([test.end - test.learned for test in earlier]) if earlier else None

    @property
    def forgetting(self) -> float | None:
        earlier = self.tests[:-1]
        return _mean([test.best - test.end for test in earlier]) if earlier else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_plan(
    plan: Plan,
    workspace: Path,
    options: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> StreamResult:
    """Learns session after session into `workspace`, a new folder.

    options: more options of adapt. say: is told each step.

    Raises:
        CommandError: a command failed; a session that the gate refused is no failure.
    """
    start = time.monotonic()
    sessions: list[SessionRun] = []
    scores: dict[str, list[float]] = {test.name: [] for test in plan.tests}
    for number, session in enumerate(plan.sessions):
        arguments = ["adapt", str(session.data), "--workspace", str(workspace)]
        arguments += ["--task", session.name, *plan.read, *plan.train, *options]
        if number == 0:
            arguments += ["--model", plan.model, *plan.first]
        facts = edge_pslora(arguments, plan.imports, (0, REFUSED))
        sessions.append(_session(session.name, facts, sessions))
        say(_line(sessions[-1]))
        serving = any(session.promoted for session in sessions)
        for test in plan.tests:
            due = test.learned == number or (plan.keep_testing and test.learned < number)
            if due and serving:
                scores[test.name].append(float(_evaluate(plan, workspace, test)["accuracy"]))
    tests = []
    for test in plan.tests:
        tests.append(_final(plan, workspace, test, scores[test.name]))
        say(f"  {test.name}: {tests[-1].learned:.3f} when learned, {tests[-1].end:.3f} at the end")
    return StreamResult(tuple(sessions), tuple(tests), time.monotonic() - start)


def _evaluate(plan: Plan, workspace: Path, test: Test, *options: str) -> dict[str, Any]:
    return edge_pslora(["eval", str(workspace), str(test.data), *plan.read, *options], plan.imports)


def _final(plan: Plan, workspace: Path, test: Test, scores: Sequence[float]) -> TestRun:
    facts = _evaluate(plan, workspace, test, "--compare-torch")
    end = float(facts["accuracy"])
    return TestRun(
        name=test.name,
        metric=facts["metric"],
        samples=facts["samples"],
        learned=scores[0] if scores else end,
        best=max([*scores, end]),
        end=end,
        agreement=facts["agreement"],
        error=facts["max_abs_error"],
    )


def _session(name: str, facts: dict[str, Any], before: Sequence[SessionRun]) -> SessionRun:
    state = before[-1].state_bytes if before else 0
    if facts["promoted"]:
        folder = Path(facts["files"][MODEL]).parent
        state = sum((folder / file).stat().st_size for file in STATE if (folder / file).is_file())
    return SessionRun(
        name=name,
        generation=facts["generation"],
        promoted=facts["promoted"],
        reason=facts["reason"],
        samples=facts["samples"],
        before=facts["accuracy_before"],
        after=facts["accuracy_after"],
        retention=facts["retention"],
        history_bytes=facts["history_bytes"],
        state_bytes=state,
        peak_rss_bytes=facts["peak_rss_bytes"],
        seconds=facts["wall_seconds"],
    )


def _line(session: SessionRun) -> str:
    gate = "promoted" if session.promoted else f"refused: {session.reason}"
    return f"{session.name}: {session.samples} samples, {session.seconds:.0f} s, {gate}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
