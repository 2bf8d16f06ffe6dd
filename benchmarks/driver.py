"""What the stream benchmarks share: options, the loop over seeds and methods, the table."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Targets, rows_of, summary
from benchmarks.methods import DEFAULT, FROZEN, JOINT_LINEAR, SEQUENTIAL, Method, choose
from benchmarks.options import count, given
from benchmarks.places import OUT
from benchmarks.run_stream import StreamRun, run_stream
from benchmarks.stream_loaders import Loader
from benchmarks.table import format_table, write_table
from edge_pslora.compare.stream import Stream
from edge_pslora.errors import EdgePsloraError

DEFAULT_METHODS = (SEQUENTIAL, DEFAULT, FROZEN, JOINT_LINEAR)


@dataclass(frozen=True)
class Benchmark:
    """name: of the file in benchmarks/out. targets: by key of the method."""

    name: str
    load: Loader
    targets: Mapping[str, Targets]


def main(benchmark: Benchmark, arguments: Sequence[str] | None = None, *, out: Path = OUT) -> int:
    """Runs it and prints; returns the exit code: 0, or that of the error (2: data missing)."""
    options = _parser(benchmark).parse_args(arguments)
    try:
        keys = options.methods or (DEFAULT_METHODS if options.only is None else ("all",))
        methods = choose(keys, options.only)
        runs, stream = _run_all(benchmark.load, methods, options.seeds, options.limit)
    except EdgePsloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    # a smoke run says nothing about the targets, and must not replace the figures of a full one
    targets = {} if options.limit else benchmark.targets
    rows = [r for method in methods for r in rows_of(method.name, runs, targets.get(method.key))]
    print()
    print(f"{stream.name}, {stream.setting}, {options.seeds} seed(s); measured = mean over seeds")
    print(format_table(rows))
    extra = {
        "command": " ".join(["python -m", f"benchmarks.{benchmark.name}", *given(arguments)]),
        "stream": stream.name,
        "setting": stream.setting,
        "tasks": [task.name for task in stream.tasks],
        "limit": options.limit,
        "runs": [run.to_dict() for run in runs],
    }
    name = f"{benchmark.name}-limit" if options.limit else benchmark.name
    print(f"written: {write_table(name, rows, out, extra)}")
    return 0


def _run_all(
    load: Loader, methods: Sequence[Method], seeds: int, limit: int | None
) -> tuple[list[StreamRun], Stream]:
    """Every method on the same split, seed by seed."""
    runs: list[StreamRun] = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory(prefix="edge-pslora-base-") as base:
            stream = load(seed, Path(base), limit)
            _say(
                f"{stream.name}, seed {seed}: "
                + ", ".join(f"{t.name} {len(t.train.targets)}" for t in stream.tasks)
                + (f"; {stream.rejected} unreadable rows left out" if stream.rejected else "")
            )
            for method in methods:
                _say(method.name)
                runs.append(run_stream(stream, method, seed, _say_row))
                _say(f"  {summary(runs[-1])}")
    return runs, stream


def _say(text: str) -> None:
    print(text, flush=True)


def _say_row(session: str, accuracies: tuple[float, ...]) -> None:
    _say(f"  after {session}: " + "  ".join(f"{value:.3f}" for value in accuracies))


def _parser(benchmark: Benchmark) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{benchmark.name}")
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="KEY",
        help="sequential, paper, default, frozen, no-loss, no-merge, no-both, joint-linear, "
        f"joint-default, or all; default: {' '.join(DEFAULT_METHODS)}",
    )
    parser.add_argument("--only", metavar="TEXT", help="only methods whose name holds this text")
    parser.add_argument(
        "--seeds", type=count(1), default=1, help="how many seeds; each has its own split"
    )
    parser.add_argument(
        "--limit", type=count(1), metavar="N", help="smoke run: N samples a part, no targets"
    )
    return parser
