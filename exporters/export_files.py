"""The parts that exports share: verified copies, labels, the head, the card, the record."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_pslora.errors import UsageError, WorkspaceError
from edge_pslora.exporters.export_folder import RECORD
from edge_pslora.exporters.model_card import CARD_FILE, ModelCard, write_card
from edge_pslora.exporters.safetensors_model import CONFIG_FILE, config_with_labels
from edge_pslora.workspace import durable, layout, manifest, strict_json
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.reading import FileDigest, open_regular, read_exactly
from edge_pslora.workspace.tensors import open_tensors, write_tensors
from edge_pslora.workspace.workspace import Workspace

LABELS = "labels.json"
_CHUNK = 1 << 20


def copy_published(chosen: Generation, name: str, destination: Path) -> None:
    """Copy one file of a generation; the bytes written are the bytes that were published.

    Raises:
        UsageError: the generation has no such file.
        WorkspaceError: the file was changed; nothing appears at `destination`.
    """
    if not chosen.has(name):
        raise UsageError(
            f"generation {chosen.number}",
            expected=f"a file {name}",
            found=", ".join(sorted(chosen.manifest.files)) or "no files",
            remedy="choose another --format or --generation",
        )
    copy_verified(chosen.path / name, destination, chosen.manifest.files[name])


def copy_verified(source: Path, destination: Path, expected: FileDigest) -> None:
    """Copy while hashing, so that what was checked is what was written."""
    digest = hashlib.sha256()
    with open_regular(source) as (descriptor, size), durable.new_file(destination) as write:
        for offset in range(0, min(size, expected.bytes), _CHUNK):
            length = min(_CHUNK, min(size, expected.bytes) - offset)
            chunk = read_exactly(descriptor, offset, length, source, error=WorkspaceError)
            digest.update(chunk)
            write(chunk)
        if (size, digest.hexdigest()) != (expected.bytes, expected.sha256):
            raise WorkspaceError(
                str(source),
                expected=f"{expected.bytes} bytes with sha256 {expected.sha256[:12]}...",
                found=f"{size} bytes with {digest.hexdigest()[:12]}...",
                remedy="the file was changed after it was published; roll back or restore it",
            )


def copy_side_files(opened: Workspace, chosen: Generation, staged: Path) -> None:
    """config.json, tokenizer and processor files: the generation's own, else the base's."""
    options = opened.header.source.get("options") or {}
    # the base's own classifier was taken over: then config.json must name today's labels
    headed = bool(options.get("head_module")) and options.get("head_labels") is not None
    for name, entry in opened.header.base_files.items():
        if name in (layout.MODEL, layout.SOURCE) or "/" in name:
            continue
        if chosen.has(name):
            copy_published(chosen, name, staged / name)
            continue
        copy_verified(opened.base / name, staged / name, entry)
        if name == CONFIG_FILE and headed:
            config = config_with_labels(staged / name, chosen.labels, opened.header.task_type)
            durable.write_bytes(staged / name, config)


def write_head(chosen: Generation, staged: Path) -> None:
    """head.safetensors with weight [C, d] and bias [C] alone: the statistics stay at home."""
    if not chosen.has(layout.HEAD):
        return
    with open_tensors(chosen.file(layout.HEAD)) as file:
        names = [name for name in file.names if name in ("weight", "bias")]
        tensors = {name: file.read(name, finite=True) for name in names}
        metadata = file.header.metadata
    if tensors and tensors["weight"].size:  # a language model has none
        write_tensors(staged / layout.HEAD, tensors, {**metadata, "format": "pt"})


def write_labels(opened: Workspace, chosen: Generation, staged: Path) -> None:
    """labels.json: the names of the outputs in order, and the task type."""
    content = {"labels": list(chosen.labels), "task_type": opened.header.task_type}
    durable.write_bytes(staged / LABELS, strict_json.canonical(content))


def write_export_card(opened: Workspace, chosen: Generation, staged: Path) -> None:
    """README.md: the generation's own, or one written here."""
    if chosen.has(CARD_FILE):
        copy_published(chosen, CARD_FILE, staged / CARD_FILE)
        return
    source = opened.header.source
    huggingface = source.get("kind") == "huggingface"
    card = ModelCard(
        title=f"Generation {chosen.number}: {chosen.manifest.task}",
        library="transformers" if huggingface else "pytorch",
        base_model=str(source.get("reference") or "") or None,
        labels=chosen.labels,
        facts={"generation": chosen.number, "created": chosen.manifest.created},
    )
    write_card(staged, card)


def write_record(
    chosen: Generation,
    staged: Path,
    format_name: str,
    facts: Mapping[str, Any],
    written: Mapping[str, FileDigest] | None = None,
) -> None:
    """export.json: where the files come from, and length and sha256 of each (None: of all there)."""
    written = manifest.describe_files(staged) if written is None else written
    content = {
        "format": format_name,
        "generation": chosen.number,
        "manifest_sha256": chosen.manifest_sha256,
        **facts,
        "files": {n: {"bytes": d.bytes, "sha256": d.sha256} for n, d in written.items()},
    }
    durable.write_bytes(staged / RECORD, strict_json.canonical(content))
