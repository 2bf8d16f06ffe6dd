"""workspace.json and base/: what stays the same for the whole life of a workspace."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_pslora.config import TASK_TYPES, TaskType
from edge_pslora.errors import WorkspaceError
from edge_pslora.workspace import layout, manifest, strict_json
from edge_pslora.workspace.reading import FileDigest

_FIELDS = {"format_version", "base_digest", "task_type", "labels", "source", "base_files"}


@dataclass(frozen=True)
class Header:
    """task_type and labels are those of the base (labels grow later, in the manifests).

    source: ModelSource as JSON; base_digest: sha256 that names the base model's weights and source;
    base_files: every file of base/.
    """

    base_digest: str
    task_type: TaskType
    labels: tuple[str, ...]
    source: Mapping[str, Any]
    base_files: Mapping[str, FileDigest]


def digest_of(files: Mapping[str, FileDigest], where: str) -> str:
    """One digest for base/model.safetensors and base/source.json."""
    digest = hashlib.sha256()
    for name in (layout.MODEL, layout.SOURCE):
        if name not in files:
            raise WorkspaceError(
                where,
                expected=f"a file {name}",
                found=", ".join(files) or "no files",
                remedy="import the base model again",
            )
        digest.update(bytes.fromhex(files[name].sha256))
    return digest.hexdigest()


def encode(header: Header) -> bytes:
    return strict_json.canonical(
        {
            "format_version": layout.FORMAT_VERSION,
            "base_digest": header.base_digest,
            "task_type": header.task_type,
            "labels": list(header.labels),
            "source": dict(header.source),
            "base_files": {
                name: {"bytes": entry.bytes, "sha256": entry.sha256}
                for name, entry in header.base_files.items()
            },
        }
    )


def read(workspace: Path) -> Header:
    """The header of the workspace at `workspace`; the lengths of base/ are checked.

    Raises:
        WorkspaceError: no workspace, another format version, damaged, or a base file is missing.
    """
    path = workspace / layout.WORKSPACE_FILE
    if not path.exists():
        raise WorkspaceError(
            str(workspace),
            expected=f"a workspace (a folder with {layout.WORKSPACE_FILE})",
            found="none",
            remedy="make one: edge-pslora adapt DATA --model SRC --workspace DIR",
        )
    found = from_dict(strict_json.read(path, limit=manifest.MAX_MANIFEST), path)
    manifest.verify_files(workspace / layout.BASE, found.base_files)
    return found


def from_dict(content: Mapping[str, Any], path: Path) -> Header:
    """The content of a workspace.json, wherever it stands (`path` says so); no file is looked at.

    Raises:
        WorkspaceError: another format version, or damaged.
    """
    version = content.get("format_version")
    if version != layout.FORMAT_VERSION or type(version) is not int:
        raise WorkspaceError(
            str(path),
            expected=f"format version {layout.FORMAT_VERSION}",
            found=repr(version),
            remedy="use the version of edge-pslora that made the workspace",
        )
    labels, source, files = content.get("labels"), content.get("source"), content.get("base_files")
    if (
        content.keys() != _FIELDS
        or content["task_type"] not in TASK_TYPES
        or not isinstance(labels, list)
        or not all(isinstance(label, str) for label in labels)
        or not isinstance(source, dict)
        or not isinstance(files, dict)
    ):
        raise WorkspaceError(
            str(path),
            expected=f"the fields {', '.join(sorted(_FIELDS))}",
            found="others, or other kinds of values",
            remedy="the file is damaged; restore it from a copy",
        )
    base_files = manifest.files_from_dict(files, str(path))
    if content["base_digest"] != digest_of(base_files, str(path)):
        raise WorkspaceError(
            str(path),
            expected="the base digest of its base files",
            found=ascii(content["base_digest"])[:40],
            remedy="the file is damaged; restore it from a copy",
        )
    return Header(content["base_digest"], content["task_type"], tuple(labels), source, base_files)
