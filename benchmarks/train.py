"""`make bench-train`: what a session costs in time, CPU seconds and memory beside PEFT in a plain loop.

Every run is a process of its own; the variants take turns, so that a slow minute hits all of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.options import count, given
from benchmarks.places import OUT
from benchmarks.streams.plan import Cut
from benchmarks.table import Row, format_table, write_table
from benchmarks.train_child import PEFT
from benchmarks.train_rows import budget_rows, device_rows, peak, score_rows, start_rows, time_rows
from benchmarks.train_runs import (
    OURS,
    SCORED,
    STARTED,
    TIMED,
    Bench,
    Runs,
    at_budgets,
    in_rounds,
    least_budget,
)
from benchmarks.train_subjects import SUBJECTS, Prepare
from edge_pslora.errors import EdgePsloraError
from edge_pslora.training.placing import described_device

PARTS = ("start", "time", "score", "budgets")
BUDGETS = 10
AMPLE = 1.1  # times what a run takes that has no budget: the largest budget that is tried


def main(
    arguments: Sequence[str] | None = None,
    *,
    subjects: Mapping[str, Prepare] = SUBJECTS,
    out: Path = OUT,
) -> int:
    """Measures and prints; returns the exit code: 0, or that of the error (2: no model, no data)."""
    options = _parser(list(subjects)).parse_args(arguments)
    rows: list[Row] = []
    notes: list[str] = []
    runs: dict[str, Any] = {}
    try:
        for name in options.subjects or list(subjects):
            with tempfile.TemporaryDirectory(prefix="edge-pslora-train-") as folder:
                found, said, raw = _measure(name, subjects[name], Path(folder), options)
            rows, notes, runs[name] = rows + found, notes + said, raw
    except EdgePsloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if options.quick:  # says nothing about the targets
        rows = [replace(one, target=None, met=None) for one in rows]
    held = [one for one in rows if one.target is not None]
    print()
    if held:
        print(format_table(held) + "\n")
    print(format_table([one for one in rows if one.target is None]))
    for note in notes:
        print(f"note: {note}")
    extra = {
        "command": " ".join(["python -m benchmarks.train", *given(arguments)]),
        "threads": options.threads,
        "samples": options.samples,
        "epochs": options.epochs,
        "device": described_device(torch.device(options.device)),
        "notes": notes,
        "runs": runs,
    }
    print(f"written: {write_table(_file_name(options), rows, out, extra)}")
    return 0


def _measure(
    name: str, prepare: Prepare, work: Path, options: argparse.Namespace
) -> tuple[list[Row], list[str], dict[str, Any]]:
    """(rows, notes, the runs behind them) of one subject."""
    train, test = options.samples
    subject = prepare(work / "data", Cut(train, test))
    bench = Bench(subject, work, options.threads, options.epochs, options.device)
    rows: list[Row] = []
    notes: list[str] = []
    kept: dict[str, Any] = {}
    peaks: list[float] = []
    parts = options.only or PARTS
    if "start" in parts:
        _say(f"{name}: to the first step")
        started = in_rounds(bench, STARTED, options.rounds, _say)
        rows, kept["start"] = rows + start_rows(name, started), _kept(started)
    if "time" in parts:
        _say(f"{name}: time and memory")
        timed = in_rounds(bench, TIMED, options.rounds, _say)
        found, notes = time_rows(name, timed)
        found += device_rows(name, timed)
        rows, kept["time"] = rows + found, _kept(timed)
        peaks = [peak(t) for t in timed[PEFT]]
    if "score" in parts:
        _say(f"{name}: test scores")
        scored = in_rounds(bench, SCORED, options.seeds, _say)
        rows, kept["score"] = rows + score_rows(name, scored, peaks), _kept(scored)
    if "budgets" in parts:
        _say(f"{name}: {BUDGETS} budgets")
        free = in_rounds(bench, SCORED[:1], 1, _say)[OURS][0]
        least = least_budget(bench, _say)
        budgets = between(least, max(int(AMPLE * (free.peak_rss or 0)), least))
        taken = at_budgets(bench, budgets, _say)
        rows += budget_rows(name, budgets, taken)
        kept["budgets"] = [{"budget": b, **asdict(t)} for b, t in zip(budgets, taken, strict=True)]
    return rows, notes, kept


def between(least: int, ample: int) -> list[int]:
    """BUDGETS numbers of bytes, each the same factor above the one before."""
    factor = (ample / least) ** (1 / (BUDGETS - 1))
    return [round(least * factor**i) for i in range(BUDGETS)]


def _kept(runs: Runs) -> dict[str, Any]:
    return {name: [asdict(t) for t in taken] for name, taken in runs.items()}


def _say(line: str) -> None:
    print(line, flush=True)


def _file_name(options: argparse.Namespace) -> str:
    """A run that leaves something out must not replace the figures of a whole one."""
    device = [] if options.device == "cpu" else [options.device.replace(":", "")]
    names = ["train", *device, *(["quick"] if options.quick else [])]
    return "-".join([*names, *(options.subjects or []), *(options.only or [])])


def _parser(subjects: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train")
    parser.add_argument("--subjects", nargs="+", choices=subjects, help="only these models")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="only these parts")
    parser.add_argument(
        "--samples",
        nargs=2,
        type=count(1),
        default=(300, 1000),
        metavar=("TRAIN", "TEST"),
        help="at most; default: 300 1000",
    )
    parser.add_argument("--epochs", type=count(1), default=3, help="default: 3")
    parser.add_argument("--rounds", type=count(1), default=5, help="of timing; default: 5")
    parser.add_argument("--seeds", type=count(1), default=3, help="of scoring; default: 3")
    parser.add_argument("--threads", type=count(1), default=2, help="default: 2")
    parser.add_argument(
        "--device", default="cpu", help="what trains, by torch's name; default: cpu"
    )
    parser.add_argument("--quick", action="store_true", help="smoke run: no targets")
    return parser


if __name__ == "__main__":
    sys.exit(main())
