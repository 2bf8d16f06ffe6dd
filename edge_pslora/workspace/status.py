"""What `edge-pslora status` shows: read-only, without torch, for damaged workspaces too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_pslora.errors import WorkspaceError
from edge_pslora.workspace import generation, layout, manifest, staging
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.header import Header
from edge_pslora.workspace.update_status import describe_updates

_CERTIFIED = ("name", "history_rank", "eps", "proven_signs", "sign_agreement")


def describe(path: Path, header: Header, *, verify: bool) -> dict[str, Any]:
    """The state of a workspace as JSON values.

    Args:
        verify: also check the sha256 of every file of base/ and of every generation.

    Returns:
        workspace, generation (number or None), parent, task, task_type, labels, metrics,
        base_digest, history_bytes, certificate (of the history: largest eps, mean shares of proven
        signs, and the same of each layer), updates (see update_status.describe_updates), disk_bytes
        (base and all generations), generations (a
        list: number, parent, task, created, labels, disk_bytes, current, damage), warnings and
        damage (lists of lines), verified.

    Raises:
        WorkspaceError: the pointer or the current generation is damaged.
    """
    current = generation.load_current(path, header.base_digest)
    damage = _base_damage(path, header) if verify else []
    updates, broken = describe_updates(path)
    damage += broken
    rows = []
    total = sum(entry.bytes for entry in header.base_files.values())
    for number in generation.numbers(path):
        row = _row(path, header, number, verify=verify)
        row["current"] = current is not None and current.number == number
        damage += [row["damage"]] if row["damage"] else []
        total += row["disk_bytes"]
        rows.append(row)
    return {
        "workspace": str(path),
        "generation": None if current is None else current.number,
        "parent": None if current is None else current.manifest.parent,
        "task": None if current is None else current.manifest.task,
        "task_type": header.task_type,
        "labels": list(header.labels if current is None else current.labels),
        "metrics": {} if current is None else dict(current.manifest.metrics),
        "base_digest": header.base_digest,
        "history_bytes": 0 if current is None else _history_bytes(current),
        "certificate": {} if current is None else _certificate(current),
        "updates": updates,
        "disk_bytes": total,
        "generations": rows,
        "warnings": staging.leftovers(path),
        "damage": damage,
        "verified": verify,
    }


def _row(path: Path, header: Header, number: int, *, verify: bool) -> dict[str, Any]:
    try:
        found = generation.load(path, number, header.base_digest)
    except WorkspaceError as problem:
        return {
            "number": number,
            "parent": None,
            "task": None,
            "created": None,
            "labels": 0,
            "disk_bytes": 0,
            "damage": str(problem),
        }
    damage = None
    if verify:
        try:
            found.verify()
        except WorkspaceError as problem:
            damage = str(problem)
    return {
        "number": number,
        "parent": found.manifest.parent,
        "task": found.manifest.task,
        "created": found.manifest.created,
        "labels": len(found.labels),
        "disk_bytes": found.bytes,
        "damage": damage,
    }


def _base_damage(path: Path, header: Header) -> list[str]:
    try:
        manifest.verify_files(path / layout.BASE, header.base_files, contents=None)
    except WorkspaceError as problem:
        return [str(problem)]
    return []


def _history_bytes(current: Generation) -> int:
    entry = current.manifest.files.get(layout.HISTORY)
    return 0 if entry is None else entry.bytes


def _certificate(current: Generation) -> dict[str, Any]:
    """What is proven about the history, as its session found it: in all, and layer by layer."""
    certificate = current.manifest.metrics.get("certificate")
    layers = current.manifest.metrics.get("layers")
    if not isinstance(certificate, dict):
        return {}
    rows = layers if isinstance(layers, list) else []
    return dict(certificate) | {
        "layers": [{name: row.get(name) for name in _CERTIFIED} for row in rows]
    }
