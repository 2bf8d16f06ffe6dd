"""The figures of a stream as rows for benchmarks/out, and as Markdown for docs/STREAMS.md."""

from __future__ import annotations

from statistics import median

from benchmarks.streams.plan import Plan
from benchmarks.streams.run import StreamResult
from benchmarks.table import Row, row


def rows_of(result: StreamResult) -> list[Row]:
    """Averages over the tests, and the costs. No target is set: the tables in the docs say what was met."""
    metric = result.tests[0].metric
    sessions, tests = result.sessions, result.tests
    rows = [
        row(f"average {metric} at the end", [result.average], "fraction", "higher"),
        row(f"{metric} just after learning", [result.learning], "fraction", "higher"),
    ]
    if result.backward is not None and result.forgetting is not None:
        rows.append(row("backward transfer", [result.backward], "fraction", "higher"))
        rows.append(row("forgetting", [result.forgetting], "fraction", "lower"))
    growth = sessions[-1].history_bytes / max(1, sessions[0].history_bytes)
    agreement = min(test.agreement for test in tests)
    promoted = sum(session.promoted for session in sessions) / len(sessions)
    return [
        *rows,
        row("sessions that passed the gate", [promoted], "fraction", "higher"),
        row(
            "least share of answers alike, onnxruntime and torch", [agreement], "fraction", "higher"
        ),
        row("history bytes", [float(sessions[-1].history_bytes)], "bytes", "lower"),
        row("history bytes, last session / first", [growth], "ratio", "lower"),
        row("state kept for the next session", [float(sessions[-1].state_bytes)], "bytes", "lower"),
        row("peak memory", [float(max(s.peak_rss_bytes for s in sessions))], "bytes", "lower"),
        row("adapt, median session", [median(s.seconds for s in sessions)], "s", "lower"),
        row("whole stream", [result.seconds], "s", "lower"),
    ]


def markdown(plan: Plan, result: StreamResult, command: str, date: str) -> list[str]:
    """A table with one line a test, and a sentence of what it cost."""
    metric = result.tests[0].metric
    lines = [
        f"| test | samples | {metric} when learned | at the end | onnxruntime = torch |",
        "|---|---|---|---|---|",
    ]
    for test in result.tests:
        alike = f"{test.agreement:.4f}, {test.error:.0e}"
        lines.append(
            f"| {test.name} | {test.samples} | {test.learned:.3f} | {test.end:.3f} | {alike} |"
        )
    samples = sum(test.samples for test in result.tests)
    lines.append(f"| **mean** | {samples} | {result.learning:.3f} | **{result.average:.3f}** | |")
    sessions = result.sessions
    refused = [session.name for session in sessions if not session.promoted]
    gate = f"refused by the gate: {', '.join(refused)}" if refused else "all passed the gate"
    return [
        *lines,
        "",
        f"{len(sessions)} sessions, {gate}; history {sessions[0].history_bytes:,} bytes after the first, "
        f"{sessions[-1].history_bytes:,} after the last; {result.seconds / 60:.1f} minutes in all "
        f"(`{command}`, {date[:10]}).",
    ]
