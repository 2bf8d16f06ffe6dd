"""The manifest of a generation: what it is, where it came from, each file's length and sha256."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_pslora.errors import WorkspaceError
from edge_pslora.workspace import layout, strict_json
from edge_pslora.workspace.reading import FileDigest, digest_file, read_limited

MAX_MANIFEST = 16 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CREATED = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z")


@dataclass(frozen=True)
class Manifest:
    """One generation.

    Attributes:
        number: 1 or more; parent: the generation it was trained on, None for the first.
        task: the user's name for the session; labels: in the order of the head's outputs.
        created: UTC, 2026-01-31T12:00:00Z.
        data_digest, base_digest: sha256, hexadecimal ("" where there is none).
        config: AdaptConfig.to_dict(); metrics: JSON values, finite.
        counter: never decreases from one update to the next, whatever is rolled back.
        files: relative name -> length and sha256; filled in when the generation is published.
    """

    number: int
    parent: int | None
    task: str
    created: str
    data_digest: str
    base_digest: str
    labels: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    counter: int = 0
    files: Mapping[str, FileDigest] = field(default_factory=dict)
    format_version: int = layout.FORMAT_VERSION


def to_dict(manifest: Manifest) -> dict[str, Any]:
    """The manifest as JSON values."""
    return {
        "format_version": manifest.format_version,
        "number": manifest.number,
        "parent": manifest.parent,
        "task": manifest.task,
        "created": manifest.created,
        "data_digest": manifest.data_digest,
        "base_digest": manifest.base_digest,
        "labels": list(manifest.labels),
        "config": dict(manifest.config),
        "metrics": dict(manifest.metrics),
        "counter": manifest.counter,
        "files": {
            name: {"bytes": entry.bytes, "sha256": entry.sha256}
            for name, entry in sorted(manifest.files.items())
        },
    }


def from_dict(content: Mapping[str, Any], where: str) -> Manifest:
    """The inverse of to_dict; every field is checked, none may be missing or extra.

    Raises:
        WorkspaceError: names the first field that is wrong.
    """
    version = content.get("format_version")
    if version != layout.FORMAT_VERSION or type(version) is not int:
        raise WorkspaceError(
            where,
            expected=f"format version {layout.FORMAT_VERSION}",
            found=repr(version),
            remedy="use the version of edge-pslora that wrote it",
        )
    fields = Manifest.__dataclass_fields__.keys()
    _check(content.keys() == fields, where, f"the fields {', '.join(fields)}", sorted(content))
    number, parent, counter = content["number"], content["parent"], content["counter"]
    _check(_count(number) and number >= 1, where, "a number from 1", number)
    _check(
        parent is None or (_count(parent) and 1 <= parent < number),
        where,
        "a parent before the generation",
        parent,
    )
    _check(_count(counter), where, "a counter from 0", counter)
    for name in ("task", "created", "data_digest", "base_digest"):
        _check(isinstance(content[name], str), where, f"text in {name}", content[name])
    created = content["created"]
    _check(_CREATED.fullmatch(created) is not None, where, "a UTC time in created", created)
    for name in ("data_digest", "base_digest"):
        digest = content[name]
        _check(not digest or _is_sha256(digest), where, f"a sha256 in {name}", digest)
    for name in ("config", "metrics", "files"):
        _check(isinstance(content[name], dict), where, f"an object in {name}", content[name])
    labels = content["labels"]
    _check(
        isinstance(labels, list)
        and all(isinstance(label, str) for label in labels)
        and len(set(labels)) == len(labels),
        where,
        "different texts in labels",
        labels,
    )
    return Manifest(
        number=number,
        parent=parent,
        task=content["task"],
        created=created,
        data_digest=content["data_digest"],
        base_digest=content["base_digest"],
        labels=tuple(labels),
        config=content["config"],
        metrics=content["metrics"],
        counter=counter,
        files=files_from_dict(content["files"], where),
    )


def files_from_dict(content: Mapping[str, Any], where: str) -> dict[str, FileDigest]:
    """{"name": {"bytes": n, "sha256": h}} -> digests; names must stay inside their folder."""
    files = {}
    for name, entry in content.items():
        _check(layout.is_safe_file_name(name), where, "safe file names", name)
        _check(
            isinstance(entry, dict)
            and entry.keys() == {"bytes", "sha256"}
            and _count(entry["bytes"])
            and _is_sha256(entry["sha256"]),
            where,
            f"length and sha256 of {name}",
            entry,
        )
        files[name] = FileDigest(entry["bytes"], entry["sha256"])
    return files


def encode(manifest: Manifest) -> bytes:
    """Canonical JSON; what was encoded can be decoded, or this raises."""
    data = strict_json.canonical(to_dict(manifest))
    decode(data, f"manifest of generation {manifest.number}")
    return data


def decode(data: bytes, where: str) -> Manifest:
    """The inverse of encode."""
    return from_dict(strict_json.parse(data, where), where)


def read(folder: Path) -> tuple[Manifest, bytes]:
    """The manifest in `folder` and its bytes (the pointer holds their sha256)."""
    path = folder / layout.MANIFEST
    data = read_limited(path, MAX_MANIFEST)
    return decode(data, str(path)), data


def describe_files(folder: Path) -> dict[str, FileDigest]:
    """Length and sha256 of every file below `folder`, except the manifest itself."""
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    )
    for name in names:
        if name != layout.MANIFEST:
            _check(layout.is_safe_file_name(name), str(folder), "plain file names", name)
    return {name: digest_file(folder / name) for name in names if name != layout.MANIFEST}


def verify_files(
    folder: Path, files: Mapping[str, FileDigest], *, contents: Collection[str] | None = ()
) -> None:
    """Every file has its length; those in `contents` (None: all) also their sha256.

    Raises:
        WorkspaceError: a file is missing, or not what was published.
    """
    for name, entry in files.items():
        path = folder / name
        if contents is None or name in contents:
            found = digest_file(path)
            if found == entry:
                continue
            what = "other contents" if found.bytes == entry.bytes else f"{found.bytes} bytes"
        else:
            size = path.stat().st_size if path.is_file() and not path.is_symlink() else None
            if size == entry.bytes:
                continue
            what = "no such file" if size is None else f"{size} bytes"
        raise WorkspaceError(
            str(path),
            expected=f"{entry.bytes} bytes with sha256 {entry.sha256[:12]}...",
            found=what,
            remedy="the file was changed after it was published; roll back or restore it",
        )


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _check(condition: bool, where: str, expected: str, found: Any) -> None:
    if not condition:
        raise WorkspaceError(
            where,
            expected=expected,
            found=ascii(found)[:120],
            remedy="the file is damaged; roll back or restore it",
        )
