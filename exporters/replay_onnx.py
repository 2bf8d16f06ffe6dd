"""`edge-pslora replay --onnx`: a deployed ONNX file brought to the delta's generation. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edge_pslora.errors import AdapterError, ModelError, UsageError
from edge_pslora.exporters import onnx_file
from edge_pslora.exporters.delta_onnx import expected
from edge_pslora.exporters.lora_factors import Array
from edge_pslora.exporters.onnx_patch import patch_onnx
from edge_pslora.exporters.onnx_publish import remove_interim, settle
from edge_pslora.exporters.onnx_read import ModelFile, external_name, open_model
from edge_pslora.update.delta import Delta, OnnxPart
from edge_pslora.update.replay import ReplayReport, replay
from edge_pslora.workspace import durable, layout
from edge_pslora.workspace.lock import folder_lock


def replay_onnx(
    delta: Path, base: Path, parent: Path | None, out: Path, deployed: Path
) -> ReplayReport:
    """As update.replay.replay; `deployed`, of the parent generation, becomes the published ONNX file.

    The ONNX file is replaced after the new weights were found right and before `out` gets its name.
    A run that was killed between the two is repeated: a file of this very generation stays as it is.

    Raises:
        ModelError: `deployed` is not the parent generation's, or damaged; nothing was changed.
        AdapterError: as replay, or the delta has no part for ONNX files.
        UsageError: as replay, or `out` is the ONNX file.
        WorkspaceLockedError: another process patches a file in that folder.
    """
    deployed = deployed.absolute()
    if out.exists() and deployed.exists() and out.samefile(deployed):
        raise UsageError(
            "--out",
            expected="a file of its own",
            found=f"{out}, which is the ONNX file",
            remedy="change the argument",
        )

    def bring(described: Delta, tensors: Mapping[str, Array]) -> None:
        if described.onnx is None:
            raise AdapterError(
                str(delta),
                expected="a delta that can patch an ONNX file",
                found="none of a file before it: the graph or its exporter changed, or it is the first",
                remedy="leave --onnx out and get model.onnx whole; nothing was changed",
            )
        _bring(deployed, described, described.onnx, tensors)

    with folder_lock(deployed.parent):
        return replay(delta, base, parent, out, then=bring)


def _bring(deployed: Path, described: Delta, part: OnnxPart, tensors: Mapping[str, Array]) -> None:
    with open_model(deployed) as file:
        data, old = file.data, dict(file.metadata)
        number = _number(file, described)
        published = number == described.generation and _is_published(file, part)
        if not published and number != described.parent:
            raise _another(deployed, described, f"generation {number}, and not as it was published")
        remove_interim(deployed, data)
        if published:
            if data is not None and data.name != external_name(deployed):  # killed on its way
                usual = onnx_file.plan(file.model, file.sizes, external_name(deployed))
                settle(deployed, data, usual)
            durable.fsync_folder(deployed.parent)  # killed after the rename, before this
            return
    given = {part.initializer(name): array for name, array in tensors.items()}
    given.pop("", None)
    old.pop(onnx_file.LAYOUT_KEY)
    patch_onnx(deployed, deployed, given, old | dict(part.metadata), expected=expected(part))
    if data is not None:
        remove_interim(deployed, None)


def _number(file: ModelFile, described: Delta) -> int:
    base = file.metadata.get("pslora.base_digest", "")
    number = file.metadata.get("pslora.generation", "")
    known = {str(n): n for n in (described.parent, described.generation) if n is not None}
    if base != described.base_digest or number not in known:
        found = f"generation {number[:12]!a} of base {base[:12]!a}"
        raise _another(file.path, described, found)
    return known[number]


def _is_published(file: ModelFile, part: OnnxPart) -> bool:
    name = layout.ONNX_DATA if layout.ONNX_DATA in part.files else None
    found = onnx_file.digests(onnx_file.plan(file.model, file.sizes, name), file.weights)
    return found == expected(part)


def _another(path: Path, described: Delta, found: str) -> ModelError:
    return ModelError(
        str(path),
        expected=f"the ONNX file of generation {described.parent} of base "
        f"{described.base_digest[:12]}",
        found=found,
        remedy="give the file that the delta was made for; nothing was changed",
    )
