"""`edge-pslora export --format onnx --opset N`: the generation exported anew, and proven anew."""

from __future__ import annotations

from typing import Any

from edge_pslora.config import GateConfig
from edge_pslora.exporters import export_files as files
from edge_pslora.exporters.export import ExportJob, Facts
from edge_pslora.exporters.onnx_export import DEFAULT_OPSET, export_onnx
from edge_pslora.pipeline.judging import prove_export
from edge_pslora.pipeline.onnx_metadata import onnx_metadata
from edge_pslora.pipeline.reopening import Reopened
from edge_pslora.tasks import TASKS
from edge_pslora.workspace import layout


def write_remade(job: ExportJob, opened: Reopened) -> Facts:
    """Fills the folder with model.onnx, its data where asked for or needed, and the tokenizer's files.

    Returns:
        opset; max_abs_error and max_rel_error: torch against the file, on the samples.

    Raises:
        ModelError: the model cannot be exported at this opset.
        GateRefusedError: the file is not what torch computes.
    """
    head, config = opened.memory.head, job.chosen.manifest.config
    opset = job.options.opset or DEFAULT_OPSET
    written = export_onnx(
        opened.classifier,
        opened.example(),
        opened.model.dynamic_axes,
        job.staged / layout.ONNX,
        metadata=onnx_metadata(
            opened.workspace, opened.model, job.chosen.number, str(config["merge"]), head, config
        ),
        opset=opset,
        external_data=job.options.external_data or None,
    )
    parity = prove_export(
        opened.classifier,
        written.model,
        opened.held.inputs,
        GateConfig(),
        TASKS[head.task_type],
        traced=bool(written.notes),
    )
    files.copy_side_files(job.opened, job.chosen, job.staged)
    facts: dict[str, Any] = {
        "opset": opset,
        "max_abs_error": parity.max_abs_error,
        "max_rel_error": parity.max_rel_error,
    }
    return {**facts, "notes": [f"equal to torch within {parity.max_abs_error:.1e}", *written.notes]}
