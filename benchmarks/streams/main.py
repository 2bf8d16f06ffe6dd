"""What every script of this folder does with its arguments."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.machine import now
from benchmarks.options import count, given
from benchmarks.places import OUT
from benchmarks.streams.plan import Cut, StreamScript
from benchmarks.streams.report import markdown, rows_of
from benchmarks.streams.run import run_plan
from benchmarks.table import format_table, write_table
from edge_pslora.errors import EdgePsloraError


def main(script: StreamScript, arguments: Sequence[str] | None = None, *, out: Path = OUT) -> int:
    """Runs the stream and prints; returns 0, or the exit code of the error (2: data missing).

    The sessions and the workspace stay in out/streams/NAME to be looked at, until the next run.
    """
    options = _parser(script).parse_args(arguments)
    cut = replace(script.cut, sessions=options.sessions, seed=options.seed)
    if options.limit is not None:
        cut = Cut(options.limit, options.limit, options.sessions, options.seed)
    elif options.all:
        cut = Cut(None, None, options.sessions, options.seed)
    # a smoke run must not replace the figures of a full one
    parts = [script.name, options.name, "limit" if options.limit or options.sessions else ""]
    name = "-".join(part for part in parts if part)
    work = out / "streams" / name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        plan = script.prepare(work, cut)
        print(f"{plan.title}, {plan.setting}, {len(plan.sessions)} sessions", flush=True)
        more = [*shlex.split(options.adapt), "--seed", str(options.seed)]
        result = run_plan(plan, work / "workspace", more, lambda text: print(text, flush=True))
    except EdgePsloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    rows = rows_of(result)
    command = " ".join([f"python -m benchmarks.streams.{script.name}", *given(arguments)])
    table = markdown(plan, result, command, now())
    print("", *table, "", format_table(rows), sep="\n")
    extra = {
        "command": command,
        "stream": plan.title,
        "setting": plan.setting,
        "cut": {"train": cut.train, "test": cut.test, "sessions": cut.sessions, "seed": cut.seed},
        "markdown": table,
        **result.to_dict(),
    }
    print(f"written: {write_table(f'stream-{name}', rows, out, extra)}")
    return 0


def _parser(script: StreamScript) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.streams.{script.name}")
    default = f"{script.cut.train or 'all'} to train on, {script.cut.test or 'all'} to test with"
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--limit",
        type=count(2),
        metavar="N",
        help=f"smoke run: N samples to train on and to test with a session; default: {default}",
    )
    size.add_argument("--all", action="store_true", help="all the data")
    parser.add_argument("--sessions", type=count(1), metavar="K", help="the first K sessions only")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of adapt; default: 0")
    parser.add_argument(
        "--adapt", default="", metavar="OPTIONS", help="more options of adapt, in quotes"
    )
    parser.add_argument("--name", default="", help="added to the name of the result's file")
    return parser
