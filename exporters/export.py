"""`edge-pslora export`: a published generation as a folder, every file verified. No torch.

The folder is made beside OUT and gets its name in one step: OUT is never half an export.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_pslora.exporters import export_files as files
from edge_pslora.exporters.export_delta import export_delta
from edge_pslora.exporters.export_folder import published_folder
from edge_pslora.exporters.export_model import export_model
from edge_pslora.exporters.export_options import ExportOptions, Format
from edge_pslora.exporters.export_peft import export_peft
from edge_pslora.workspace import durable, layout
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.workspace import Workspace

_SPARE_BYTES = 1 << 20

# JSON values. "notes": sentences for the user; "timings": what differs from run to run, not recorded
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class ExportJob:
    """One export: `staged` is the folder to fill with files of the generation `chosen`."""

    opened: Workspace
    chosen: Generation
    staged: Path
    options: ExportOptions


Writer = Callable[[ExportJob], Facts]


@dataclass(frozen=True)
class ExportResult:
    """What was written. files: paths below `out`, sorted. notes: sentences for the user.

    facts: what the format's writer measured, JSON values by name; format peft: max_relative_error, the
        largest ||D - B A|| / ||D|| of a layer, D = merged - base, 0 where the adapter is the session's
        own; left_out, the tensors that changed and that an adapter cannot hold (norms, biases). Format
        delta: parent (None: the base), factors (their form), onnx (whether replay --onnx takes it),
        delta_bytes, model_bytes. "timings": what was timed here; it is not in export.json, so that equal
        exports give equal bytes.
    """

    out: str
    format: Format
    generation: int
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()
    facts: Facts = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "out": self.out,
            "format": self.format,
            "generation": self.generation,
            "files": list(self.files),
            "notes": list(self.notes),
            **self.facts,
        }


def export_generation(
    workspace: Path,
    out: Path,
    options: ExportOptions,
    *,
    generation: int | None = None,
    overwrite: bool = False,
    writer: Writer | None = None,
) -> ExportResult:
    """Copy or convert the files of one generation into the folder `out`.

    onnx: model.onnx (and its data), tokenizer files. safetensors: the merged model in the Hugging
    Face layout where the base was one. peft: an adapter folder for the base; from the second
    generation on its factors are computed from the merged weights. delta: what a receiver with the
    base and the parent's model needs to replay the session. All: labels.json and export.json; safetensors
    and peft also head.safetensors (weight [C, d], bias [C]).

    Args:
        out: a new or empty folder, outside the workspace.
        generation: its number; None for the one that serves.
        overwrite: replace an earlier export in `out` (a folder with other files is never replaced).
        writer: fills the folder; None: the format's own, which needs no torch.

    Raises:
        UsageError: `out` cannot be used, nothing to export, or the format is not in the generation.
        WorkspaceError: a file is not what was published; nothing was written.
    """
    opened = Workspace.open(workspace)
    chosen = opened.published(generation)
    with published_folder(out, workspace, overwrite=overwrite) as staged:
        base_bytes = sum(entry.bytes for entry in opened.header.base_files.values())
        durable.require_free_space(staged, chosen.bytes + base_bytes + _SPARE_BYTES)
        found = dict(
            (writer or WRITERS[options.format])(ExportJob(opened, chosen, staged, options))
        )
        notes, timings = tuple(found.pop("notes", ())), found.pop("timings", None)
        files.write_labels(opened, chosen, staged)
        files.write_record(chosen, staged, options.format, found)
        names = sorted(p.relative_to(staged).as_posix() for p in staged.rglob("*") if p.is_file())
    paths = tuple(str(out / name) for name in names)
    facts = found if timings is None else {**found, "timings": timings}
    return ExportResult(str(out), options.format, chosen.number, paths, notes, facts)


def _export_onnx(job: ExportJob) -> Facts:
    notes = []
    if (
        job.options.external_data
        and job.chosen.has(layout.ONNX)
        and not job.chosen.has(layout.ONNX_DATA)
    ):
        # onnx is imported here and not above: to copy a file takes none of it
        from edge_pslora.exporters.onnx_external import write_external

        if write_external(job.chosen, job.staged / layout.ONNX) is None:
            notes.append(f"no weight is large enough for a second file: {layout.ONNX} has them all")
    else:
        files.copy_published(job.chosen, layout.ONNX, job.staged / layout.ONNX)
    if job.chosen.has(layout.ONNX_DATA):
        files.copy_published(job.chosen, layout.ONNX_DATA, job.staged / layout.ONNX_DATA)
    files.copy_side_files(job.opened, job.chosen, job.staged)
    return {"notes": notes} if notes else {}


def _export_safetensors(job: ExportJob) -> Facts:
    return {"notes": export_model(job.opened, job.chosen, job.staged)}


def _export_peft(job: ExportJob) -> Facts:
    facts = export_peft(job.opened, job.chosen, job.staged, job.options.max_rank)
    notes = [f"largest relative error of a layer: {facts['max_relative_error']:.1e}"]
    if facts["left_out"]:
        notes.append(f"an adapter cannot hold, left out: {', '.join(facts['left_out'])}")
    return {**facts, "notes": notes}


def _export_delta(job: ExportJob) -> Facts:
    return export_delta(job.opened, job.chosen, job.staged)


WRITERS: Mapping[Format, Writer] = {
    "onnx": _export_onnx,
    "safetensors": _export_safetensors,
    "peft": _export_peft,
    "delta": _export_delta,
}
