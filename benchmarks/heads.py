"""`make bench-heads`: every head on streams whose labels grow; it decides what --head auto is.

Everything but the head is the default: adapters, stability loss, merge. No target is set.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.class_streams import caltech, cifar10
from benchmarks.figures import StreamRun, rows_of, shown, summary
from benchmarks.heads_frozen import frozen_runs
from benchmarks.options import count, given
from benchmarks.places import OUT
from benchmarks.stream_loaders import Loader, text
from benchmarks.table import format_table, write_table
from edge_pslora.compare.method import Method
from edge_pslora.compare.product import ProductLearner
from edge_pslora.compare.run import run
from edge_pslora.config import AdaptConfig, HeadConfig, TrainConfig
from edge_pslora.errors import EdgePsloraError


@dataclass(frozen=True)
class HeadStream:
    """A stream and the passes over each of its tasks; kinds of head that are for this family only."""

    load: Loader
    epochs: int
    only_here: tuple[str, ...] = ()


STREAMS = {
    "caltech": HeadStream(caltech, 2),
    "cifar10": HeadStream(cifar10, 2),
    "text": HeadStream(
        partial(text, train_size=400, test_size=300, max_length=64), 2, ("label-text",)
    ),
}
HEADS = {
    "analytic-fixed": ("analytic, ridge 0.01", HeadConfig(kind="analytic", ridge=1e-2)),
    "analytic": ("analytic, leave-one-out", HeadConfig(kind="analytic")),
    "analytic-balanced": (
        "analytic, leave-one-out, balanced",
        HeadConfig(kind="analytic", class_balance="session"),
    ),
    "linear": ("linear, protected", HeadConfig(kind="linear")),
    "linear-free": ("linear, unprotected", HeadConfig(kind="linear", protect=False)),
    "label-text": ("label-text", HeadConfig(kind="label-text")),
}
FROZEN = "frozen"  # the ways to choose the ridge on features that are never trained: seconds


def head_methods(stream: HeadStream, keys: Sequence[str]) -> list[Method]:
    """Those of `keys` that fit the stream's family, in the order of HEADS."""
    special = {key for other in STREAMS.values() for key in other.only_here}
    return [
        _method(key)
        for key in HEADS
        if key in keys and (key not in special or key in stream.only_here)
    ]


def _method(key: str) -> Method:
    name, head = HEADS[key]
    change = lambda config: replace(config, head=head)  # noqa: E731
    return Method(key, name, "docs/HEADS.md", lambda setup: ProductLearner(setup, change))


def head_config(stream: HeadStream, batch_size: int = TrainConfig().batch_size) -> AdaptConfig:
    """Everything but the head: the defaults."""
    return AdaptConfig(train=TrainConfig(epochs=stream.epochs, batch_size=batch_size))


def main(arguments: Sequence[str] | None = None, *, out: Path = OUT) -> int:
    """Runs and prints; returns the exit code: 0, or that of the error (2: data missing)."""
    options = _parser().parse_args(arguments)
    runs: list[StreamRun] = []
    try:
        for name in options.streams:
            for seed in range(options.first_seed, options.first_seed + options.seeds):
                runs += _run(name, seed, options)
    except EdgePsloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    rows = [r for name in dict.fromkeys(one.method for one in runs) for r in rows_of(name, runs)]
    print(f"\nclass-incremental, {options.seeds} seed(s); measured = mean over seeds")
    print(format_table(rows))
    extra = {
        "command": " ".join(["python -m benchmarks.heads", *given(arguments)]),
        "limit": options.limit,
        "runs": [one.to_dict() for one in runs],
    }
    print(f"written: {write_table(options.name, rows, out, extra)}")
    return 0


def _run(name: str, seed: int, options: argparse.Namespace) -> list[StreamRun]:
    found: list[StreamRun] = []
    with tempfile.TemporaryDirectory(prefix="edge-pslora-base-") as base:
        stream = STREAMS[name].load(seed, Path(base), options.limit)
        sizes = ", ".join(f"{t.name} {len(t.train.targets)}" for t in stream.tasks)
        print(f"{stream.name}, seed {seed}: {sizes}", flush=True)
        if FROZEN in options.heads:
            found += frozen_runs(stream, seed)
        config = head_config(STREAMS[name], options.batch_size)
        for method in head_methods(STREAMS[name], options.heads):
            found.append(shown(run(method, stream, config, seed)[0], method.name))
            print(f"  {method.name}: {summary(found[-1])}", flush=True)
    return [replace(one, method=f"{name}: {one.method}") for one in found]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.heads")
    keys = [FROZEN, *HEADS]
    parser.add_argument("--streams", nargs="+", choices=list(STREAMS), default=list(STREAMS))
    parser.add_argument("--heads", nargs="+", choices=keys, default=keys)
    parser.add_argument("--seeds", type=count(1), default=1, help="how many seeds")
    parser.add_argument("--first-seed", type=count(0), default=0, metavar="N")
    parser.add_argument("--limit", type=count(1), metavar="N", help="at most N samples a part")
    parser.add_argument(
        "--batch-size", type=count(1), default=TrainConfig().batch_size, metavar="N"
    )
    parser.add_argument(
        "--name", default="heads", help="of the file in benchmarks/out, without .json"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
