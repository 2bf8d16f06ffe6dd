"""`python -m benchmarks.suite`: runs what is missing, then prints the table.

A results file grows by one line a run and setting; a suite that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.options import count
from benchmarks.places import OUT
from benchmarks.suite.budget import changed
from benchmarks.suite.pace import Pace
from benchmarks.suite.plan import Group, digest_of, keys_done, plan
from benchmarks.suite.processes import run_groups
from benchmarks.suite.streams import QUICK_STREAMS, STREAMS, SuiteStream, quick
from edge_pslora.compare.extra import require_statistics
from edge_pslora.compare.methods import METHODS, choose
from edge_pslora.compare.results import Result, read
from edge_pslora.compare.run import ScoredPart
from edge_pslora.compare.table import format_results
from edge_pslora.errors import EdgePsloraError
from edge_pslora.units import format_duration


def main(arguments: Sequence[str] | None = None, *, out: Path = OUT) -> int:
    """Returns the exit code: 0; 1 where a run failed; that of the error (2: wrong use)."""
    options = _parser().parse_args(arguments)
    seeds = options.seeds or (1 if options.quick else 5)
    path = options.out or out / ("suite-quick.jsonl" if options.quick else "suite.jsonl")
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # forked processes must not wait for its threads
    try:
        require_statistics()  # for the table at the end
        streams = _streams(options)
        methods = choose(options.methods or ["all"])
        path.parent.mkdir(parents=True, exist_ok=True)
        results = read(path)
        groups = plan(streams, methods, seeds, options.part, keys_done(results))
        failed = _run(groups, results, path, options.jobs)
        _print_tables(streams, options.part, read(path))
    except EdgePsloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on: {path}", file=sys.stderr)
        return 130
    print(f"written: {path}")
    return 1 if failed else 0


def _run(groups: Sequence[Group], results: Sequence[Result], path: Path, jobs: int) -> int:
    """How many runs failed."""
    pace = Pace(groups, results, jobs)
    start, failed = time.monotonic(), 0
    print(f"{pace.total} runs to go in {len(groups)} groups, {pace.left()}", flush=True)
    for ended in run_groups(groups, path, jobs):
        failed += bool(ended.problem)
        pace.add(ended)
        what = f"{ended.stream} seed {ended.seed} {ended.method or 'loaded'}"
        said = f"FAILED: {ended.problem}" if ended.problem else ended.figures
        done = f"[{pace.done}/{pace.total}]"
        print(f"{done} {what}: {said} ({ended.seconds:.1f} s); {pace.left()}", flush=True)
    if groups:
        print(f"{pace.done} runs in {format_duration(time.monotonic() - start)}")
    return failed


def _print_tables(streams: Sequence[SuiteStream], part: ScoredPart, results: list[Result]) -> None:
    """One for each stream and setting, of results with the budgets as they are now."""
    for stream in streams:
        digest = digest_of(stream, part)
        own = [r for r in results if r.stream == stream.key and r.digest == digest]
        for setting in dict.fromkeys(r.setting for r in own):
            print(f"\n{stream.title}; {setting}, {part} part, {_budget(stream)}")
            print("\n".join(format_results([r for r in own if r.setting == setting])))


def _budget(stream: SuiteStream) -> str:
    budget = stream.budget
    return (
        f"at most {budget.train} samples a task to train on, {budget.test} to test with, "
        f"{budget.epochs} epochs"
    )


def _streams(options: argparse.Namespace) -> list[SuiteStream]:
    """Those that are asked for, with the budgets that are."""
    keys = options.streams or (QUICK_STREAMS if options.quick else tuple(STREAMS))
    streams = [quick(STREAMS[key]) if options.quick else STREAMS[key] for key in keys]
    if options.budget is None:
        return streams
    return [replace(s, budget=changed(s.budget, options.budget)) for s in streams]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite")
    parser.add_argument("--streams", nargs="+", choices=list(STREAMS), metavar="KEY")
    parser.add_argument(
        "--methods", nargs="+", metavar="KEY", help=f"of {', '.join(METHODS)}; default: all"
    )
    parser.add_argument("--seeds", type=count(1), help="how many, from 0; default: 5, quick: 1")
    parser.add_argument(
        "--quick", action="store_true", help="one seed, four streams, small budgets: minutes"
    )
    parser.add_argument("--jobs", type=count(1), default=2, help="processes at once; default: 2")
    parser.add_argument(
        "--part",
        choices=["test", "valid"],
        default="test",
        help="what is scored; anything that is chosen is chosen by valid",
    )
    parser.add_argument(
        "--budget",
        metavar="NAME=N,...",
        help="another budget for these streams, such as train=2000,test=500,epochs=3",
    )
    parser.add_argument("--out", type=Path, help="a results file, to be continued")
    return parser
