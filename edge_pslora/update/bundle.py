"""bundle.json: what a signed update is, for whom, and what it leads to. Strict to read.

It is one of the signed files itself (a TUF target), so that nothing of it is read before two
signatures were checked; edge_pslora.signing knows the signatures and nothing of what is here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from edge_pslora.errors import BundleError, InputError
from edge_pslora.workspace import layout, manifest, strict_json
from edge_pslora.workspace.manifest import Manifest
from edge_pslora.workspace.reading import FileDigest

BundleKind = Literal["full", "delta"]
KINDS: tuple[BundleKind, ...] = get_args(BundleKind)
BUNDLE_FILE = "bundle.json"
FORMAT_VERSION = 1
MAX_BUNDLE = 16 << 20
DEFAULT_DEVICE_CLASS = "default"  # of bundles and devices that were told of none
BASE_PREFIX = f"{layout.BASE}/"  # shipped files of the base model, for a device that has none yet
_CLASS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_FIELDS = {
    *("format_version", "kind", "counter", "signed_at", "device_classes", "parent_model"),
    *("header", "manifest", "payload", "result"),
}


@dataclass(frozen=True)
class Bundle:
    """One signed update.

    Attributes:
        counter: 1 or more; a device never takes a smaller one than the largest it has seen.
        signed_at: UTC, seconds; a device's clock is never taken to be earlier than the newest seen.
        device_classes: the device must be of one of them; never empty.
        parent_model: length and sha256 of the model.safetensors that a delta goes on from, None for a
            delta on the base itself and for a full bundle.
        header: workspace.json of the publisher as JSON values (base digest and files, task type,
            labels, source): a device without a workspace makes its own from it.
        manifest: of the publisher's generation, its `files` being all that it consists of there.
        payload: shipped files by name: those of the generation, delta.safetensors for a delta, and
            with the prefix base/ those of the base.
        result: files that the device's generation has in the end, a part of manifest.files.
    """

    kind: BundleKind
    counter: int
    signed_at: datetime
    device_classes: tuple[str, ...]
    parent_model: FileDigest | None
    header: Mapping[str, Any]
    manifest: Manifest
    payload: Mapping[str, FileDigest]
    result: Mapping[str, FileDigest]

    @property
    def bytes(self) -> int:
        """Of the payload."""
        return sum(entry.bytes for entry in self.payload.values())


def encode(bundle: Bundle) -> bytes:
    """Canonical JSON; what was encoded can be decoded, or this raises BundleError."""
    parent = bundle.parent_model
    data = strict_json.canonical(
        {
            "format_version": FORMAT_VERSION,
            "kind": bundle.kind,
            "counter": bundle.counter,
            "signed_at": bundle.signed_at.strftime(_TIME),
            "device_classes": list(bundle.device_classes),
            "parent_model": None if parent is None else _files({"model": parent})["model"],
            "header": dict(bundle.header),
            "manifest": manifest.to_dict(bundle.manifest),
            "payload": _files(bundle.payload),
            "result": _files(bundle.result),
        }
    )
    decode(data, BUNDLE_FILE)
    return data


def decode(data: bytes, where: str) -> Bundle:
    """The inverse of encode.

    Raises:
        BundleError: names the first field that is wrong.
    """
    content = strict_json.parse(data, where, error=BundleError)
    version = content.get("format_version")
    _check(type(version) is int and version == FORMAT_VERSION, where, "format version 1", version)
    _check(content.keys() == _FIELDS, where, f"the fields {sorted(_FIELDS)}", sorted(content))
    kind, counter, classes = content["kind"], content["counter"], content["device_classes"]
    _check(kind in KINDS, where, f"a kind of {', '.join(KINDS)}", kind)
    _check(type(counter) is int and 1 <= counter < 2**53, where, "a counter from 1", counter)
    _check(
        isinstance(classes, list)
        and classes != []
        and all(is_device_class(name) for name in classes),
        where,
        "names of device classes",
        classes,
    )
    _check(isinstance(content["header"], dict), where, "an object in header", content["header"])
    parent = content["parent_model"]
    try:
        _check(isinstance(content["manifest"], dict), where, "an object in manifest", None)
        published = manifest.from_dict(content["manifest"], f"{where}, manifest")
        payload = _digests(content["payload"], f"{where}, payload")
        result = _digests(content["result"], f"{where}, result")
        base = None if parent is None else _digests({"model": parent}, f"{where}, parent_model")
    except InputError as problem:
        raise BundleError(
            problem.where,
            expected=problem.expected,
            found=problem.found,
            remedy="get the bundle again, or tell who made it",
        ) from problem
    for name, entry in result.items():
        _check(published.files.get(name) == entry, where, "a result from the manifest", name)
    return Bundle(
        kind=kind,
        counter=counter,
        signed_at=_time(content["signed_at"], where),
        device_classes=tuple(classes),
        parent_model=None if base is None else base["model"],
        header=content["header"],
        manifest=published,
        payload=payload,
        result=result,
    )


def is_device_class(name: object) -> bool:
    """Letters, digits, '_', '.', '-', at most 64 of them."""
    return isinstance(name, str) and _CLASS.fullmatch(name) is not None


def _files(files: Mapping[str, FileDigest]) -> dict[str, dict[str, Any]]:
    return {
        name: {"bytes": entry.bytes, "sha256": entry.sha256}
        for name, entry in sorted(files.items())
    }


def _digests(content: Any, where: str) -> dict[str, FileDigest]:
    _check(isinstance(content, dict), where, "an object", content)
    return manifest.files_from_dict(content, where)


def _time(text: Any, where: str) -> datetime:
    try:
        found = datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except (TypeError, ValueError) as problem:
        raise BundleError(
            where,
            expected="a UTC time in signed_at",
            found=ascii(text)[:40],
            remedy="get the bundle again, or tell who made it",
        ) from problem
    return found


def _check(condition: bool, where: str, expected: str, found: Any) -> None:
    if not condition:
        raise BundleError(
            where,
            expected=expected,
            found=ascii(found)[:120],
            remedy="get the bundle again, or tell who made it",
        )
