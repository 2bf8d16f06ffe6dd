"""`edge-pslora export --patch`: a deployed ONNX file brought to another generation. No torch.

The result has the bytes of a full export in the same layout: its sha256 in the layout of the published
file is compared with the manifest before anything is replaced. So nothing has to be trusted that is
kept, and the old file's own bytes are compared only to tell a damaged file from one that is in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from edge_pslora.errors import ModelError, UsageError, WorkspaceError
from edge_pslora.exporters import export_files as files
from edge_pslora.exporters import onnx_file
from edge_pslora.exporters.export import ExportResult
from edge_pslora.exporters.export_folder import RECORD
from edge_pslora.exporters.onnx_file import Stored
from edge_pslora.exporters.onnx_patch import proven, write_patched
from edge_pslora.exporters.onnx_publish import remove_interim, settle
from edge_pslora.exporters.onnx_read import ModelFile, external_name, open_model
from edge_pslora.workspace import durable, layout, strict_json
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.lock import folder_lock
from edge_pslora.workspace.reading import FileDigest, digest_file
from edge_pslora.workspace.workspace import Workspace

_REMEDY = "nothing was changed; export again in full"


def patch_export(workspace: Path, existing: Path, *, generation: int | None = None) -> ExportResult:
    """Replace the weights of the file `existing`, and of its model.onnx_data, by a generation's.

    Weights that are the same stay: the kernel copies them, and shares their blocks where the file
    system can. In a folder that `export` made, labels.json, export.json and config.json follow.

    Args:
        existing: an ONNX file of this workspace, of whatever generation, outside the workspace.
        generation: its number; None for the one that serves.

    Raises:
        ModelError: `existing` is not ours, of another base, or damaged; nothing was changed.
        UsageError: it lies in the workspace, or the generation has no ONNX file.
        WorkspaceError: the generation's files are not what was published; nothing was changed.
        WorkspaceLockedError: another process is patching in that folder.
    """
    opened = Workspace.open(workspace)
    chosen = opened.published(generation)
    existing = existing.absolute()
    _check_place(existing, workspace)
    with ExitStack() as stack:
        stack.enter_context(folder_lock(existing.parent))
        old = stack.enter_context(open_model(existing))
        before = _number(old, opened)
        new = stack.enter_context(_published(chosen))
        notes = []
        kept = onnx_file.unchanged(old.weights, new.weights)
        if before in opened.generations():
            _require_intact(old, kept, stack, opened.generation(before))
        else:
            notes.append(f"generation {before} is gone: only what is kept was verified")
        remove_interim(existing, old.data)
        written = _bring(old, new, kept, chosen)
        beside = _side_files(opened, chosen, existing)
    paths = [existing, *([] if old.data is None else [existing.with_name(external_name(existing))])]
    kept_bytes = sum(weight.nbytes for weight in kept.values())
    if written is None:
        notes.append("it was that generation already")
    else:
        notes.append(f"{kept_bytes:,} bytes of weights kept, {written:,} from the generation")
    facts = {"patched_from": before, "kept_bytes": kept_bytes, "written_bytes": written or 0}
    names = tuple(str(path) for path in [*paths, *beside])
    return ExportResult(str(existing), "onnx", chosen.number, names, tuple(notes), facts)


def _bring(
    old: ModelFile, new: ModelFile, kept: Mapping[str, Stored], chosen: Generation
) -> int | None:
    """Writes what has to be written: so many bytes of large weights are not from the old file.

    None: it is that generation already.
    """
    expected = _digests(chosen)
    out, external = old.path, old.data is not None
    if len(kept) == len(new.weights) and _one_file(old) == _one_file(new):
        name = layout.ONNX_DATA if len(expected) > 1 else None
        if onnx_file.digests(onnx_file.plan(old.model, old.sizes, name), old.weights) != expected:
            raise _damaged(old)
        if old.data is not None and old.data.name != external_name(out):  # killed on its way
            planned = onnx_file.plan(old.model, old.sizes, external_name(out))
            settle(out, old.data, planned)
        durable.fsync_folder(out.parent)  # killed after the rename, before this
        return None
    payloads = {name: kept.get(name, weight) for name, weight in new.weights.items()}
    proof = proven(out, new.model, payloads, expected, WorkspaceError)
    write_patched(out, new.model, payloads, external=external, proof=proof)
    if old.data is not None:
        remove_interim(out, None)
    return sum(weight.nbytes for name, weight in new.weights.items() if name not in kept)


def _check_place(existing: Path, workspace: Path) -> None:
    home = workspace.resolve()
    # of the path and not of the file: that is checked when it is opened, links refused
    if home in [*existing.parent.resolve().parents, existing.parent.resolve()]:
        raise UsageError(
            str(existing),
            expected="a file outside the workspace",
            found=f"one in {workspace}",
            remedy="what was published is never changed: copy it, or export it",
        )


def _number(old: ModelFile, opened: Workspace) -> int:
    """The generation that the file says it is, of this workspace's base."""
    base = old.metadata.get("pslora.base_digest", "")
    number = old.metadata.get("pslora.generation", "")
    if base != opened.header.base_digest or not number.isascii() or not number.isdigit():
        raise ModelError(
            str(old.path),
            expected=f"a generation of base {opened.header.base_digest[:12]}",
            found=f"generation {number[:12]!a} of base {base[:12]!a}",
            remedy="give a file that was exported from this workspace",
        )
    return int(number[:9])


@contextmanager
def _published(chosen: Generation) -> Iterator[ModelFile]:
    if not chosen.has(layout.ONNX):
        raise UsageError(
            f"generation {chosen.number}",
            expected=f"a file {layout.ONNX}",
            found=", ".join(sorted(chosen.manifest.files)) or "no files",
            remedy="choose another --generation",
        )
    with open_model(chosen.path / layout.ONNX, error=WorkspaceError) as file:
        yield file


def _digests(chosen: Generation) -> tuple[FileDigest, ...]:
    names = (layout.ONNX, layout.ONNX_DATA)
    return tuple(chosen.manifest.files[name] for name in names if chosen.has(name))


def _require_intact(
    old: ModelFile, kept: Mapping[str, Stored], stack: ExitStack, before: Generation
) -> None:
    """The file is what its generation's manifest says.

    Most weights are known to be: they are kept. The others are compared with the published file, which
    is ten times as fast as a sha256; that is asked only where the two differ, since either may be damaged.
    """
    if before.has(layout.ONNX):
        then = stack.enter_context(_published(before))
        rest = {name: weight for name, weight in old.weights.items() if name not in kept}
        same = onnx_file.unchanged(rest, then.weights)
        if len(same) == len(rest) and _one_file(old) == _one_file(then):
            return
    expected = _digests(before)
    name = layout.ONNX_DATA if len(expected) > 1 else None
    if onnx_file.digests(onnx_file.plan(old.model, old.sizes, name), old.weights) != expected:
        raise _damaged(old)


def _damaged(old: ModelFile) -> ModelError:
    return ModelError(
        str(old.path),
        expected=f"the bytes of generation {old.metadata['pslora.generation']}",
        found="others: it was changed after it was exported",
        remedy=_REMEDY,
    )


def _one_file(file: ModelFile) -> tuple[onnx_file.Segment, ...]:
    return onnx_file.plan(file.model, file.sizes, None).model


def _side_files(opened: Workspace, chosen: Generation, existing: Path) -> list[Path]:
    """In a folder that `export` made: labels, settings and record of the new generation."""
    folder = existing.parent
    if existing.name != layout.ONNX or not (folder / RECORD).is_file():
        return []
    record = strict_json.read(folder / RECORD, error=ModelError)
    named = record.get("files")
    if record.get("format") != "onnx" or not isinstance(named, dict) or layout.ONNX not in named:
        return []
    for name in (files.LABELS, RECORD, *opened.header.base_files):
        durable.remove_leftovers(folder, name)
    if record.get("manifest_sha256") == chosen.manifest_sha256:
        return []
    files.copy_side_files(opened, chosen, folder)
    files.write_labels(opened, chosen, folder)
    names = [n for n in named if layout.is_safe_file_name(n) and (folder / n).is_file()]
    written = {name: digest_file(folder / name) for name in sorted(names)}
    files.write_record(chosen, folder, "onnx", {}, written)
    return [folder / name for name in (files.LABELS, RECORD)]
