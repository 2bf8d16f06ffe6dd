"""The rows of `make bench-train`: what the issue of the training engine sets targets for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.table import Row, median_row, row
from benchmarks.train_child import PEFT, PEFT_BF16, Taken
from benchmarks.train_runs import HALF, OURS, PLAIN, Runs

Figure = Callable[[Taken], float]


def time_rows(name: str, runs: Runs) -> tuple[list[Row], list[str]]:
    """Time, CPU seconds and memory beside the peer's, round by round; sentences on what has no row."""

    def over(what: str, one: str, other: str, mine: Figure, theirs: Figure, target: float) -> Row:
        pairs = zip(runs[one], runs[other], strict=True)
        values = [mine(a) / theirs(b) for a, b in pairs]
        return median_row(f"{name}: {what}", values, "ratio", "lower", target)

    rows = [
        over("time per sample, session / PEFT float32", OURS, PEFT, session, session, 0.50),
        over("time per sample, training / PEFT float32", OURS, PEFT, training, session, 0.50),
        over("time per sample, session / PEFT bf16", OURS, PEFT_BF16, session, session, 0.85),
        over("time per sample, training / PEFT bf16", OURS, PEFT_BF16, training, session, 0.85),
        over(
            "CPU s per sample, session / PEFT float32", OURS, PEFT, session_cpu, session_cpu, 0.50
        ),
        over(
            "CPU s per sample, training / PEFT float32", OURS, PEFT, training_cpu, session_cpu, 0.50
        ),
        over("peak memory of a session / PEFT float32", OURS, PEFT, peak, peak, 0.60),
    ]
    notes = []
    if [t.layers for t in runs[HALF]] == [t.layers for t in runs[OURS]]:
        notes.append(
            f"{name}: --adapt-depth changed no layer, so the row of the top half is missing"
        )
    else:
        what = "top half, prefix cache, time per sample / PEFT float32, full depth"
        rows.append(over(what, HALF, PEFT, session, session, 0.25))
        what = "top half, prefix cache, CPU s per sample / PEFT float32, full depth"
        rows.append(over(what, HALF, PEFT, session_cpu, session_cpu, 0.25))
    plain = "session, every option on / plain float32 run"
    values = [session(a) / session(b) for a, b in zip(runs[OURS], runs[PLAIN], strict=True)]
    rows.append(median_row(f"{name}: {plain}", values, "ratio", "lower"))
    for one, what, figure in (
        (OURS, "ours, a session", session_cpu),
        (OURS, "ours, training alone", training_cpu),
        (PEFT, "PEFT float32", session_cpu),
        (PEFT_BF16, "PEFT bf16", session_cpu),
    ):
        values = [1000 * figure(t) for t in runs[one]]
        rows.append(median_row(f"{name}: CPU time per sample, {what}", values, "ms", "lower"))
    for one, what in ((OURS, "ours, a session"), (PEFT, "PEFT float32"), (PEFT_BF16, "PEFT bf16")):
        values = [peak(t) for t in runs[one]]
        rows.append(median_row(f"{name}: peak above the imports, {what}", values, "bytes", "lower"))
    return rows, notes


def device_rows(name: str, runs: Runs) -> list[Row]:
    """Memory of the device that trains, beside the peer's; none where it is the CPU."""
    if any(t.device_peak is None for taken in runs.values() for t in taken):
        return []
    pairs = zip(runs[OURS], runs[PEFT], strict=True)
    ratios = [_value(a.device_peak) / _value(b.device_peak) for a, b in pairs]
    rows = [median_row(f"{name}: device memory / PEFT float32", ratios, "ratio", "lower", 0.60)]
    for one, what in ((OURS, "ours"), (PEFT, "PEFT float32"), (PEFT_BF16, "PEFT bf16")):
        values = [_value(t.device_peak) for t in runs[one]]
        rows.append(median_row(f"{name}: device memory, {what}", values, "bytes", "lower"))
    return rows


def score_rows(name: str, runs: Runs, peer_peaks: Sequence[float]) -> list[Row]:
    """What the options cost in test score, seed by seed, and the memory of whole `adapt` runs.

    peer_peaks: bytes above the imports, of PEFT in float32; empty: not measured.
    """
    pairs = list(zip(runs[OURS], runs[PLAIN], strict=True))
    lost = [100 * (_value(b.score) - _value(a.score)) for a, b in pairs]
    rows = [
        row(f"{name}: score lost by the options", lost, "points", "lower", 0.5),
        row(
            f"{name}: score of the plain run",
            [_value(b.score) for _, b in pairs],
            "score",
            "higher",
        ),
    ]
    if peer_peaks:
        middle = sorted(peer_peaks)[len(peer_peaks) // 2]
        values = [peak(t) / middle for t in runs[OURS]]
        what = f"{name}: peak memory of a whole adapt / PEFT float32"
        rows.append(median_row(what, values, "ratio", "lower", 0.60))
    return rows


def start_rows(name: str, runs: Runs) -> list[Row]:
    """From the start of the process to the end of the first step."""
    walls = [_value(t.first_step_wall) for t in runs[OURS]]
    cpus = [_value(t.first_step_cpu) for t in runs[OURS]]
    return [
        median_row(f"{name}: adapt to first step", walls, "s", "lower", 3.0),
        median_row(f"{name}: adapt to first step, CPU", cpus, "s", "lower"),
    ]


def budget_rows(name: str, budgets: Sequence[int], found: Sequence[Taken]) -> list[Row]:
    """How many runs had more memory resident than they were given, and how many were refused."""
    over = sum(_value(t.peak_rss) > budget for budget, t in zip(budgets, found, strict=True))
    refused = sum(t.exit_code != 0 for t in found)
    what = f"{name}: {len(budgets)} budgets"
    return [
        row(f"{what}, exceeded", [over], "runs", "lower", 0.0),
        row(f"{what}, refused", [refused], "runs", "lower"),
    ]


def session(taken: Taken) -> float:
    """Seconds per sample of everything from encoded samples to the trained model."""
    return _value(taken.session_wall) / taken.samples


def session_cpu(taken: Taken) -> float:
    return _value(taken.session_cpu) / taken.samples


def training(taken: Taken) -> float:
    """Seconds per sample of the steps alone."""
    return _value(taken.wall) / taken.samples


def training_cpu(taken: Taken) -> float:
    return _value(taken.cpu) / taken.samples


def peak(taken: Taken) -> float:
    return _value(taken.peak)


def _value(number: float | None) -> float:
    assert number is not None, "this run did not come so far"
    return float(number)
