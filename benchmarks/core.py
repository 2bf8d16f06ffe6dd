"""`make bench-core`: what the history, the loss and the merge cost, beside what others cost.

Every figure is a ratio of two things measured in turn in this run (median, quartiles over repeats;
the extremes where there are fewer than eight), on MiniLM-L6 with all of its linear layers as targets.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.core_history import history_part
from benchmarks.core_loss_rows import loss_part
from benchmarks.core_merge import merge_part
from benchmarks.core_merge_files import merge_file_part
from benchmarks.core_setup import Part, Setup, Sizes, open_setup
from benchmarks.core_steps import STEPS, step_part
from benchmarks.options import count, given
from benchmarks.places import OUT, minilm_folder
from benchmarks.table import format_table, write_table
from edge_pslora.errors import EdgePsloraError

# a smoke run: every part once through, on so little that the figures mean nothing
QUICK = Sizes(
    pairs=1,
    repeats=1,
    batch=4,
    length=8,
    past_sessions=2,
    sessions=(1, 2, 3),
    buffers=(1 << 16,),
    file_bytes=2_000_000,
)

Measure = Callable[[Setup, Sizes], Part]

PARTS: dict[str, Measure] = {
    "step": step_part,
    "loss": loss_part,
    "history": lambda setup, sizes: history_part(setup.shapes, sizes),
    "merge": lambda setup, sizes: _both(merge_part(sizes), merge_file_part(setup, sizes)),
}


def main(
    arguments: Sequence[str] | None = None, *, model: Path | None = None, out: Path = OUT
) -> int:
    """Measures and prints; returns the exit code: 0, or that of the error (2: no model).

    model: the Hugging Face folder of a text encoder; MiniLM-L6 if None.
    """
    options = _parser().parse_args(arguments)
    sizes = _sizes(options)
    chosen = options.only or list(PARTS)
    found: dict[str, Part] = {}
    try:
        label, folder = ("MiniLM-L6", minilm_folder()) if model is None else (model.name, model)
        with tempfile.TemporaryDirectory(prefix="edge-pslora-base-") as base:
            setup = open_setup(label, folder, Path(base), sizes, STEPS)
            for name in chosen:
                print(f"measuring: {name}", flush=True)
                found[name] = PARTS[name](setup, sizes)
    except EdgePsloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    rows = [row for part in found.values() for row in part.rows]
    notes = [note for part in found.values() for note in part.notes]
    if options.quick:  # says nothing about the targets
        rows, notes = [replace(row, target=None, met=None) for row in rows], []
    print()
    print(_title(setup, sizes))
    held = [row for row in rows if row.target is not None]
    if held:
        print(format_table(held) + "\n")
    print(format_table([row for row in rows if row.target is None]))
    for note in notes:
        print(f"note: {note}")
    extra = {
        "command": " ".join(["python -m benchmarks.core", *given(arguments)]),
        "sizes": asdict(sizes),
        "targets": len(setup.targets),
        "elements": setup.elements,
        "notes": notes,
    }
    print(f"written: {write_table(_file_name(options), rows, out, extra)}")
    return 0


def _both(one: Part, other: Part) -> Part:
    return Part(one.rows + other.rows, one.notes + other.notes)


def _title(setup: Setup, sizes: Sizes) -> str:
    return (
        f"{setup.name}: {len(setup.targets)} linear layers, "
        f"{setup.elements / 1e6:.1f} M weights, r = {sizes.rank}, "
        f"{sizes.batch} x {sizes.length} tokens, {sizes.threads} thread(s); "
        "measured = median, range = quartiles (of fewer than 8: extremes)"
    )


def _file_name(options: argparse.Namespace) -> str:
    """A run that leaves something out must not replace the figures of a whole one."""
    name = "core-quick" if options.quick else "core"
    return "-".join([name, *options.only]) if options.only else name


def _sizes(options: argparse.Namespace) -> Sizes:
    sizes = replace(QUICK if options.quick else Sizes(), threads=options.threads)
    if options.repeats is not None:
        sizes = replace(sizes, repeats=options.repeats, pairs=options.repeats)
    return sizes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.core")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="only these parts")
    parser.add_argument(
        "--repeats",
        type=count(1),
        metavar="N",
        help=f"of everything; default: {Sizes.pairs} of the steps, {Sizes.repeats} of the rest",
    )
    parser.add_argument(
        "--threads", type=count(1), default=Sizes.threads, help=f"default: {Sizes.threads}"
    )
    parser.add_argument("--quick", action="store_true", help="smoke run: tiny sizes, no targets")
    return parser


if __name__ == "__main__":
    sys.exit(main())
