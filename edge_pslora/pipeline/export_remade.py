"""`edge-pslora export --format onnx` with `--opset` or `--free-image-size`: exported anew, proven anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from edge_pslora.config import GateConfig
from edge_pslora.errors import ModelError, UsageError
from edge_pslora.exporters import export_files as files
from edge_pslora.exporters.export import ExportJob, Facts
from edge_pslora.exporters.onnx_export import DEFAULT_OPSET, OnnxFiles, export_onnx
from edge_pslora.exporters.parity import Parity, check_parity
from edge_pslora.models.types import LoadedModel
from edge_pslora.pipeline.proving import NOT_WRITTEN, require_equal, run_both
from edge_pslora.pipeline.reopening import Reopened
from edge_pslora.tasks import TASKS
from edge_pslora.workspace import layout

IMAGE_AXES = ("batch", "", "height", "width")  # pixels [N, 3, H, W]


def write_remade(job: ExportJob, opened: Reopened) -> Facts:
    """Fills the folder with model.onnx, its data where asked for or needed, and the tokenizer's files.

    Returns:
        opset; max_abs_error and max_rel_error: torch against the file, on the samples.

    Raises:
        UsageError: --free-image-size, and not a model of pictures.
        ModelError: the model cannot be exported at this opset, or works for one size of picture only.
        GateRefusedError: the file is not what torch computes.
    """
    opset, free = job.options.opset or DEFAULT_OPSET, job.options.free_image_size
    axes = _any_size(opened.model) if free else opened.model.dynamic_axes
    external = job.options.external_data or None
    written, parity = remake(opened, job.staged / layout.ONNX, opset, axes, external)
    parities = [parity]
    notes = []
    if free:
        parity, sizes = _prove_sizes(opened, written)
        parities.append(parity)
        notes = [f"proven at {sizes} as well; what it is worth at other sizes was not measured"]
    files.copy_side_files(job.opened, job.chosen, job.staged)
    error = max(parity.max_abs_error for parity in parities)
    facts: dict[str, Any] = {
        "opset": opset,
        "max_abs_error": error,
        "max_rel_error": max(parity.max_rel_error for parity in parities),
    }
    return {**facts, "notes": [f"equal to torch within {error:.1e}", *notes, *written.notes]}


def remake(
    opened: Reopened,
    path: Path,
    opset: int,
    axes: Mapping[str, tuple[str, ...]],
    external_data: bool | None = None,
) -> tuple[OnnxFiles, Parity]:
    """The generation exported to `path` at this opset, and proven; raises as write_remade."""
    written = export_onnx(
        opened.classifier,
        opened.example(),
        axes,
        path,
        metadata=opened.metadata(),
        opset=opset,
        external_data=external_data,
    )
    return written, _prove(opened, written, f"--opset {opset}")


def _prove(opened: Reopened, written: OnnxFiles, option: str) -> Parity:
    try:
        parity = run_both(
            opened.classifier,
            written.model,
            opened.held.inputs,
            TASKS[opened.memory.head.task_type],
            axes=opened.model.dynamic_axes,
            traced=bool(written.notes),
        )
    except ModelError as problem:  # it is by the standard, and beyond this onnxruntime
        raise ModelError(
            option,
            expected="a file that onnxruntime can run",
            found=problem.found,
            remedy=f"choose another --opset; {DEFAULT_OPSET} has the widest support",
        ) from problem
    require_equal(parity, option, GateConfig(), opened.memory.head.target_scale, NOT_WRITTEN)
    return parity


def _any_size(model: LoadedModel) -> dict[str, tuple[str, ...]]:
    if model.source.modality != "image":
        raise UsageError(
            "--free-image-size",
            expected="a workspace whose model takes pictures",
            found=f"one of {model.source.modality} data",
            remedy="leave it away",
        )
    return dict.fromkeys(model.encoder.input_names, IMAGE_AXES)


def _prove_sizes(opened: Reopened, written: OnnxFiles) -> tuple[Parity, str]:
    """The samples at two other heights and widths, larger and smaller, even and odd."""
    count = min(4, len(opened.held.inputs))
    batch = opened.held.inputs.batch(np.arange(count, dtype=np.int64))
    (name,) = batch
    side = batch[name].shape[-1]
    sizes = [(side * 3 // 2, side * 3 // 4 + 1), (side + 1, side * 5 // 4)]
    resized = [{name: F.interpolate(batch[name], size, mode="bilinear")} for size in sizes]
    task = TASKS[opened.memory.head.task_type]
    threads = torch.get_num_threads()
    try:
        parity = check_parity(
            opened.classifier,
            written.model,
            resized,
            threads=threads,
            predict=task.predict,
            margin=task.margin,
        )
    except ModelError as problem:  # such as padding that was worked out for the one size
        raise ModelError(
            "--free-image-size",
            expected=f"a model that works for other pictures than {side} x {side}",
            found=f"one whose file does not run for them: {problem.found}",
            remedy="leave it away",
        ) from problem
    unit = opened.memory.head.target_scale
    require_equal(parity, "--free-image-size", GateConfig(), unit, NOT_WRITTEN)
    return parity, " and ".join(f"{height} x {width}" for height, width in sizes)
