"""A deployed file brought to the next generation, beside exporting the model again and beside a copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.export_subjects import Subject
from benchmarks.export_timing import in_turn, ratios
from benchmarks.table import Row, median_row
from edge_pslora.exporters.export import export_generation
from edge_pslora.exporters.export_options import ExportOptions
from edge_pslora.exporters.export_patch import patch_export
from edge_pslora.exporters.onnx_export import export_onnx
from edge_pslora.pipeline.reopening import Reopened
from edge_pslora.workspace import durable, layout

FULL, ONE, TWO, COPY = "full export", "patch, one file", "patch, external data", "copy"
TARGET = 0.01


def patch_rows(subject: Subject, again: Reopened, work: Path, repeats: int) -> list[Row]:
    """Wall time, in turn. full export: tracing and writing the model, in a process that has it loaded;
    patch: all that `export --patch` does; copy: a durable copy of the file, what no new file beats."""
    calls = {
        FULL: _full(again, work / "full.onnx"),
        ONE: _patch(subject, work / "one", external=False),
        TWO: _patch(subject, work / "two", external=True),
        COPY: _copy(again, work / "copy.onnx"),
    }
    taken = in_turn(calls, repeats)
    target = TARGET if subject.name == "minilm" else None
    rows = [
        median_row(
            f"{subject.name}: {name} / full export", ratios(taken, name, FULL), "ratio", "lower", t
        )
        for name, t in ((ONE, target), (TWO, target), (COPY, None))
    ]
    seconds = [1000 * s for s in taken[FULL]]
    return [*rows, median_row(f"{subject.name}: full export", seconds, "ms", "lower")]


def _full(again: Reopened, path: Path) -> Callable[[], object]:
    metadata = again.metadata()
    return lambda: export_onnx(
        again.classifier, again.example(), again.model.dynamic_axes, path, metadata=metadata
    )


def _patch(subject: Subject, folder: Path, *, external: bool) -> Callable[[], object]:
    """Each call brings the deployed file to the other of the last two generations."""
    options = ExportOptions("onnx", external_data=external)
    last = export_generation(subject.workspace, folder, options).generation
    turn = [last - 1, last]

    def run() -> None:
        patch_export(subject.workspace, folder / layout.ONNX, generation=turn[0])
        turn.reverse()

    return run


def _copy(again: Reopened, path: Path) -> Callable[[], object]:
    published = again.generation.file(layout.ONNX)
    return lambda: durable.copy_file(published, path)
