"""`edge-pslora export`: a published generation as a folder, every file verified. No torch.

The folder is made beside OUT and gets its name in one step: OUT is never half an export.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edge_pslora.errors import UsageError
from edge_pslora.exporters import export_files as files
from edge_pslora.exporters.export_folder import published_folder
from edge_pslora.exporters.export_peft import export_peft
from edge_pslora.workspace import durable, layout
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.workspace import Workspace

Format = Literal["onnx", "safetensors", "peft"]
DEFAULT_RANK = 64
_SPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class ExportResult:
    """What was written. files: paths below `out`, sorted.

    max_relative_error: format peft: the largest ||D - B A|| / ||D|| of a layer, D = merged - base;
        0 where the adapter is the session's own; None for other formats.
    left_out: tensors that changed and that an adapter cannot hold (norms, biases).
    """

    out: str
    format: Format
    generation: int
    files: tuple[str, ...]
    max_relative_error: float | None = None
    left_out: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "files": list(self.files), "left_out": list(self.left_out)}


def export_generation(
    workspace: Path,
    out: Path,
    format: Format,
    *,
    generation: int | None = None,
    overwrite: bool = False,
    rank: int = DEFAULT_RANK,
) -> ExportResult:
    """Copy or convert the files of one generation into the folder `out`.

    onnx: model.onnx (and its data), tokenizer files. safetensors: the merged model in the Hugging
    Face layout where the base was one. peft: an adapter folder for the base; from the second
    generation on its factors are computed from the merged weights. All: labels.json and
    export.json; the latter two formats also head.safetensors (weight [C, d], bias [C]).

    Args:
        out: a new or empty folder, outside the workspace.
        generation: its number; None for the one that serves.
        overwrite: replace an earlier export in `out` (a folder with other files is never replaced).
        rank: format peft: at most this rank for a layer.

    Raises:
        UsageError: `out` cannot be used, nothing to export, or the format is not in the generation.
        WorkspaceError: a file is not what was published; nothing was written.
    """
    if format not in _WRITERS or rank < 1:
        raise UsageError(
            "export",
            expected=f"--format {'|'.join(_WRITERS)} and a rank from 1",
            found=f"{format}, rank {rank}",
            remedy="change the option",
        )
    opened = Workspace.open(workspace)
    chosen = opened.published(generation)
    with published_folder(out, workspace, overwrite=overwrite) as staged:
        base_bytes = sum(entry.bytes for entry in opened.header.base_files.values())
        durable.require_free_space(staged, chosen.bytes + base_bytes + _SPARE_BYTES)
        facts = _WRITERS[format](opened, chosen, staged, rank)
        files.write_labels(opened, chosen, staged)
        files.write_record(chosen, staged, format, facts)
        names = sorted(p.relative_to(staged).as_posix() for p in staged.rglob("*") if p.is_file())
    return ExportResult(
        str(out),
        format,
        chosen.number,
        tuple(str(out / name) for name in names),
        facts.get("max_relative_error"),
        tuple(facts.get("left_out", ())),
    )


def _export_onnx(
    opened: Workspace, chosen: Generation, staged: Path, rank: int
) -> Mapping[str, Any]:
    files.copy_published(chosen, layout.ONNX, staged / layout.ONNX)
    if chosen.has(layout.ONNX_DATA):
        files.copy_published(chosen, layout.ONNX_DATA, staged / layout.ONNX_DATA)
    files.copy_side_files(opened, chosen, staged)
    return {}


def _export_safetensors(
    opened: Workspace, chosen: Generation, staged: Path, rank: int
) -> Mapping[str, Any]:
    files.copy_published(chosen, layout.MODEL, staged / layout.MODEL)
    files.copy_side_files(opened, chosen, staged)
    files.write_head(chosen, staged)
    files.write_export_card(opened, chosen, staged)
    return {}


_WRITERS: Mapping[str, Callable[[Workspace, Generation, Path, int], Mapping[str, Any]]] = {
    "onnx": _export_onnx,
    "safetensors": _export_safetensors,
    "peft": export_peft,
}
