"""Exports that need the model itself: it is made again in torch, and each file is proven against it.

What only copies or converts published files is in `exporters.export`, which needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from edge_pslora.data.options import ReadOptions
from edge_pslora.exporters.export import ExportJob, ExportResult, Facts, export_generation
from edge_pslora.exporters.export_options import ExportOptions, Format
from edge_pslora.models.types import GivenModule
from edge_pslora.pipeline.export_cache import write_with_cache
from edge_pslora.pipeline.export_quantized import write_quantized
from edge_pslora.pipeline.export_remade import write_remade
from edge_pslora.pipeline.ort_adapters import write_ort_adapters
from edge_pslora.pipeline.reopening import Reopened, reopen

ModelWriter = Callable[[ExportJob, Reopened], Facts]


def export_with_model(
    workspace: Path,
    out: Path,
    options: ExportOptions,
    *,
    generation: int | None = None,
    overwrite: bool = False,
    data: Path | None = None,
    read: ReadOptions | None = None,
    module: GivenModule | None = None,
) -> ExportResult:
    """As `exporters.export.export_generation`, for options that `needs_model`.

    Args:
        data: samples to prove, measure and calibrate with; None: the anchors of the generation.
        module: of a workspace whose model was handed over from Python.

    Raises:
        GateRefusedError: the file is not what torch computes, or lost too much by quantising.
        EdgePsloraError: as export_generation and reopen.
    """
    writer = WRITERS[options.format]

    def write(job: ExportJob) -> Facts:
        return writer(job, reopen(job.opened, job.chosen, data, read, module))

    return export_generation(
        workspace, out, options, generation=generation, overwrite=overwrite, writer=write
    )


# option of --format onnx -> its writer; the first that was asked for
ONNX_WRITERS: Mapping[str, ModelWriter] = {
    "quantize": write_quantized,
    "kv_cache": write_with_cache,
    "free_image_size": write_remade,
    "opset": write_remade,
}


def _write_onnx(job: ExportJob, opened: Reopened) -> Facts:
    asked = next(name for name in ONNX_WRITERS if getattr(job.options, name))
    return ONNX_WRITERS[asked](job, opened)


WRITERS: Mapping[Format, ModelWriter] = {"onnx": _write_onnx, "ort-adapter": write_ort_adapters}
