"""`make bench-export`: what each form of export is in bytes, to load and to run; what a patch and a delta
save; whether the files compute what torch computes. On the demo, MiniLM-L6 and MobileNetV1."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.export_delta import delta_rows
from benchmarks.export_forms import FORMS, TORCH, FormRun, measure_forms
from benchmarks.export_patch import patch_rows
from benchmarks.export_subjects import SUBJECTS, Size, Subject
from benchmarks.options import count, given
from benchmarks.places import OUT
from benchmarks.table import Row, format_table, median_row, row, write_table
from edge_pslora.errors import EdgePsloraError
from edge_pslora.pipeline.reopening import Reopened

SIZE = Size(train=600, test=1000)
ROUNDS = 60
QUANTIZED = ("onnx int8", "onnx int8 static")
PLAIN = "onnx"


def main(
    arguments: Sequence[str] | None = None,
    *,
    subjects: Mapping[str, Any] = SUBJECTS,
    out: Path = OUT,
) -> int:
    """Measures and prints; returns the exit code: 0, or that of the error (2: no model, no data)."""
    options = _parser(list(subjects)).parse_args(arguments)
    chosen = options.only or list(subjects)
    size = Size(*options.samples)
    found: dict[str, list[FormRun]] = {}
    rows: list[Row] = []
    try:
        for name in chosen:
            with tempfile.TemporaryDirectory(prefix="edge-pslora-export-") as folder:
                work = Path(folder)
                print(f"{name}: learning two sessions", flush=True)
                subject = subjects[name](work, size)
                print(f"{name}: exporting, loading, running", flush=True)
                exports = work / "exports"
                exports.mkdir()
                found[name], again = measure_forms(subject, exports, FORMS, options.rounds)
                print(_forms_table(name, found[name]) + "\n", flush=True)
                rows += rows_of(subject, found[name], again)
                rows += _of(subject, delta_rows(subject.workspace, work, options.repeats))
                rows += patch_rows(subject, again, work, options.repeats)
    except EdgePsloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if options.quick:  # says nothing about the targets
        rows = [replace(one, target=None, met=None) for one in rows]
    print(format_table(rows))
    extra = {
        "command": " ".join(["python -m benchmarks.export", *given(arguments)]),
        "forms": {name: [asdict(run) for run in runs] for name, runs in found.items()},
    }
    name = "-".join(["export", *(["quick"] if options.quick else []), *(options.only or [])])
    print(f"written: {write_table(name, rows, out, extra)}")
    return 0


def rows_of(subject: Subject, runs: Sequence[FormRun], again: Reopened) -> list[Row]:
    """The figures that the issue of exports sets targets for, of one subject."""
    name, by = subject.name, {run.form: run for run in runs}
    metrics = again.generation.manifest.metrics
    rows = [
        row(
            f"{name}: ONNX against torch, largest difference",
            [metrics["onnx_max_abs_error"]],
            "absolute",
            "lower",
            1e-4,
        ),
        row(
            f"{name}: ONNX against torch, same predictions",
            [metrics["onnx_agreement"]],
            "fraction",
            "higher",
            1.0,
        ),
        median_row(
            f"{name}: onnxruntime / torch eager, one sample",
            by[PLAIN].relative,
            "ratio",
            "lower",
            0.7,
        ),
    ]
    for form in QUANTIZED:
        rows += _quantized_rows(name, by[form], by[PLAIN], held=name == "minilm")
    return rows


def _of(subject: Subject, rows: Sequence[Row]) -> list[Row]:
    """Under the subject's name; the targets are MiniLM's."""
    named = [replace(one, figure=f"{subject.name}: {one.figure}") for one in rows]
    return named if subject.name == "minilm" else [replace(r, target=None, met=None) for r in named]


def _quantized_rows(name: str, run: FormRun, plain: FormRun, held: bool) -> list[Row]:
    if run.refused:
        print(f"{name}: {run.form} was refused: {run.refused}")
        return []
    faster = [a / b for a, b in zip(plain.relative, run.relative, strict=True)]
    drop = run.facts["quantization"]["drop"]
    best = held and run.form == QUANTIZED[0]
    return [
        row(f"{name}: {run.form}, drop", [drop], "fraction", "lower", 0.01 if held else None),
        median_row(
            f"{name}: {run.form}, speed-up", faster, "ratio", "higher", 1.5 if best else None
        ),
    ]


def _forms_table(name: str, runs: Sequence[FormRun]) -> str:
    cells = [(name, "bytes", "command s", "load ms", "one sample ms", "of torch")]
    torch = next(run.latency for run in runs if run.form == TORCH) or 0.0
    for run in runs:
        if run.refused:
            cells.append((run.form, "refused", "", "", "", ""))
            continue
        load = "" if run.load is None else f"{run.load:.1f}"
        latency = "" if run.latency is None else f"{run.latency:.2f}"
        share = "" if run.latency is None else f"{run.latency / torch:.2f}"
        size = f"{run.bytes:,}" if run.bytes else ""
        seconds = f"{run.seconds:.1f}" if run.seconds else ""
        cells.append((run.form, size, seconds, load, latency, share))
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    first, *rest = widths
    lines = [
        "  ".join([c[0].ljust(first), *(v.rjust(w) for v, w in zip(c[1:], rest, strict=True))])
        for c in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def _parser(subjects: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export")
    parser.add_argument("--only", nargs="+", choices=subjects, help="only these models")
    parser.add_argument(
        "--samples",
        nargs=2,
        type=count(1),
        default=(SIZE.train, SIZE.test),
        metavar=("TRAIN", "TEST"),
        help=f"of a session, at most; default: {SIZE.train} {SIZE.test}",
    )
    parser.add_argument(
        "--rounds", type=count(3), default=ROUNDS, help=f"of running; default: {ROUNDS}"
    )
    parser.add_argument("--repeats", type=count(1), default=7, help="of patching; default: 7")
    parser.add_argument("--quick", action="store_true", help="smoke run: no targets")
    return parser


if __name__ == "__main__":
    sys.exit(main())
