"""What a patch costs beside a full export of the same generation, and beside a copy of its bytes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.table import Row, median_row
from edge_pslora.errors import UsageError
from edge_pslora.exporters.export_patch import patch_export
from edge_pslora.exporters.onnx_export import export_onnx
from edge_pslora.exporters.onnx_file import LAYOUT_KEY
from edge_pslora.exporters.onnx_patch import patch_onnx
from edge_pslora.exporters.onnx_read import open_model
from edge_pslora.pipeline.onnx_metadata import onnx_metadata
from edge_pslora.pipeline.reopening import reopen
from edge_pslora.workspace import durable, layout
from edge_pslora.workspace.workspace import Workspace

TARGET = 0.01  # of a full export's wall time


def patch_rows(workspace: Path, temporary: Path, repeats: int) -> list[Row]:
    """Seconds of each, and the ratios, everything interleaved; one more round warms up.

    Args:
        workspace: two generations at least, the serving one with anchors.
        temporary: a folder on the file system in question.

    Raises:
        UsageError: only one generation.
    """
    opened = Workspace.open(workspace)
    new = opened.published()
    if new.manifest.parent is None:
        raise UsageError("benchmark", expected="two generations", found="one", remedy="learn more")
    old = opened.generation(new.manifest.parent)
    again = reopen(opened, new)
    merge = str(new.manifest.config["merge"])
    metadata = onnx_metadata(opened, again.model, new.number, merge, again.memory.head)
    seconds: dict[str, list[float]] = {}

    def timed(name: str, act: Callable[[Path], object], *, two: bool = False) -> None:
        folder = temporary / "bench-patch"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        path = folder / layout.ONNX
        deploy(old.path / layout.ONNX, path, two=two)
        start = time.perf_counter()
        act(path)
        seconds.setdefault(name, []).append(time.perf_counter() - start)

    def full(path: Path) -> None:
        axes = again.model.dynamic_axes
        export_onnx(again.classifier, again.example(), axes, path, metadata=metadata)

    for _ in range(repeats + 1):
        timed("full", full)
        timed("copy", lambda path: durable.copy_file(path, path.with_name("copy")))
        timed("patch, one file", lambda path: patch_export(workspace, path))
        timed("patch, two files", lambda path: patch_export(workspace, path), two=True)
    shutil.rmtree(temporary / "bench-patch")
    rows = [
        median_row(f"{name}: wall time", values[1:], "s", "lower")
        for name, values in seconds.items()
    ]
    for name, values in seconds.items():
        if name != "full":
            ratios = [a / b for a, b in zip(values[1:], seconds["full"][1:], strict=True)]
            target = TARGET if name.startswith("patch") else None
            rows.append(median_row(f"{name} / full export", ratios, "ratio", "lower", target))
    return rows


def deploy(source: Path, path: Path, *, two: bool) -> None:
    """A copy of a published model, as one file or as two."""
    if not two:
        durable.copy_file(source, path)
        return
    with open_model(source) as file:
        metadata = {key: value for key, value in file.metadata.items() if key != LAYOUT_KEY}
    patch_onnx(source, path, {}, metadata, external=True)
