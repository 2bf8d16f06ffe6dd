"""From a verified source to files on the device: what the bundle says, whether it fits, its payload."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_pslora.errors import BundleError, WorkspaceError
from edge_pslora.signing.sources import Source
from edge_pslora.signing.trusted import Verified, stream_target
from edge_pslora.update import bundle as text
from edge_pslora.update.bundle import Bundle
from edge_pslora.update.delta import DELTA_FILE
from edge_pslora.workspace import durable, header, layout, manifest, strict_json
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.header import Header
from edge_pslora.workspace.reading import FileDigest, digest_file
from edge_pslora.workspace.update_state import UpdateState
from edge_pslora.workspace.workspace import Workspace

_SPARE = 8 << 20  # bytes beside the files: manifest, trusted metadata, folders
_AGAIN = "get a bundle made for this device, or tell who made it; nothing was changed"


@dataclass(frozen=True)
class Offer:
    """What a source offers, after its signatures were checked. digest: of bundle.json."""

    source: Source
    verified: Verified
    bundle: Bundle
    digest: str

    @property
    def where(self) -> str:
        return self.source.where

    @property
    def facts(self) -> dict[str, Any]:
        """What the device's manifest says of it."""
        number = self.bundle.manifest.number
        return {"counter": self.bundle.counter, "kind": self.bundle.kind, "generation": number}


def read_offer(source: Source, verified: Verified) -> Offer:
    """bundle.json, and that the signed files are those that it names, byte for byte.

    Raises:
        BundleError: none, damaged, or other files than it says.
    """
    own = verified.targets.get(text.BUNDLE_FILE)
    if own is None or own.bytes > text.MAX_BUNDLE:
        raise unfit(source.where, f"a signed {text.BUNDLE_FILE}", "none, or a very large one")
    data = b"".join(stream_target(source, text.BUNDLE_FILE, own))
    bundle = text.decode(data, f"{source.where}, {text.BUNDLE_FILE}")
    wanted = {**bundle.payload, text.BUNDLE_FILE: own}
    if dict(verified.targets) != wanted:
        other = sorted(
            name
            for name in {*wanted, *verified.targets}
            if wanted.get(name) != verified.targets.get(name)
        )
        raise unfit(
            source.where, "the signed files that bundle.json names", f"another {other[0]!a}"
        )
    return Offer(source, verified, bundle, hashlib.sha256(data).hexdigest())


def check_class(offer: Offer, device_class: str) -> None:
    classes = offer.bundle.device_classes
    if device_class not in classes:
        found = f"one for {', '.join(classes[:5])}"
        raise unfit(offer.where, f"a bundle for devices of class {device_class}", found)


def check_counter(offer: Offer, state: UpdateState) -> None:
    """Not older than what was taken; equal is for the caller."""
    if offer.bundle.counter < state.counter:
        expected = f"a counter of {state.counter} or more, which this device has taken"
        raise unfit(offer.where, expected, f"{offer.bundle.counter}: an older bundle")


def check_fit(offer: Offer, workspace: Workspace | None) -> None:
    """The bundle leads from what is here to a generation.

    Raises:
        BundleError: another base model or kind of task, the parent of a delta is not here, no base for
            a device without one, or files that make no generation.
    """
    bundle, where = offer.bundle, offer.where
    published = published_header(offer)
    _require(
        bundle.manifest.base_digest == published.base_digest,
        where,
        "one base model in the whole bundle",
        "two",
    )
    if workspace is None:
        _check_base(offer, published)
    else:
        own = workspace.header
        _require(
            (own.base_digest, own.task_type) == (published.base_digest, published.task_type),
            str(workspace.path),
            f"a bundle for the base model {own.base_digest[:12]} ({own.task_type})",
            f"one for {published.base_digest[:12]} ({published.task_type})",
        )
    shipped = {name for name in bundle.payload if not name.startswith(text.BASE_PREFIX)}
    _require(
        {layout.MODEL, layout.ONNX} <= bundle.result.keys(),
        where,
        f"{layout.MODEL} and {layout.ONNX} in the end",
        ", ".join(sorted(bundle.result))[:80] or "nothing",
    )
    for name in shipped & bundle.result.keys():
        _require(bundle.payload[name] == bundle.result[name], where, "one file of a name", name)
    made = bundle.result.keys() - shipped
    if bundle.kind == "full":
        _require(
            shipped == bundle.result.keys(), where, "each file of the result", str(sorted(made))
        )
        return
    extra = shipped - bundle.result.keys() - {DELTA_FILE}
    replayed = {layout.MODEL, layout.ONNX, layout.ONNX_DATA}
    _require(
        DELTA_FILE in shipped and not extra, where, "a delta, and files of the result", str(extra)
    )
    _require(made <= replayed, where, "each file that no delta makes", str(sorted(made - replayed)))
    if workspace is None:
        _require(bundle.parent_model is None, where, "a full bundle for a new device", "a delta")
    else:
        find_parent(offer, workspace)


def find_parent(offer: Offer, workspace: Workspace) -> Generation | None:
    """The generation whose model the delta goes on from, the newest first; None: the base itself."""
    wanted = offer.bundle.parent_model
    if wanted is None:
        return None
    for number in reversed(workspace.generations()):
        try:
            found = workspace.generation(number)
        except WorkspaceError:  # a damaged one is not what it was, whatever it is
            continue
        if found.manifest.files.get(layout.MODEL) == wanted:
            return found
    raise unfit(
        offer.where,
        f"a delta from a model that is here ({len(workspace.generations())} generations)",
        f"one from a model with sha256 {wanted.sha256[:12]}...",
        "get a full bundle: a delta needs the model before it",
    )


def need_space(offer: Offer, path: Path) -> None:
    """Refuse before anything is fetched."""
    bundle = offer.bundle
    payload = sum(entry.bytes for entry in bundle.payload.values())
    made = sum(e.bytes for name, e in bundle.result.items() if name not in bundle.payload)
    durable.require_free_space(path, payload + 2 * made + _SPARE)


def fetch(offer: Offer, name: str, destination: Path) -> None:
    """One file of the payload; it has its name only after its length and sha256 were found right.

    A file that is there already, from a try that was killed, stays.
    """
    entry = offer.bundle.payload[name]
    if destination.is_file() and digest_file(destination) == entry:
        return
    durable.remove_leftovers(destination.parent, destination.name)
    with durable.new_file(destination) as append:
        for part in stream_target(offer.source, name, entry):
            append(part)


def fetch_tree(offer: Offer, names: Mapping[str, str], folder: Path) -> None:
    """names: of the payload -> in the folder, with '/' between at most four parts."""
    for name, inside in sorted(names.items()):
        *parents, last = inside.split("/")
        below = folder
        for part in parents:
            below = below / part
            durable.make_folder(below)
        fetch(offer, name, below / last)


def published_header(offer: Offer) -> Header:
    """workspace.json of the publisher."""
    where = Path(f"{offer.where}, header")
    try:
        return header.from_dict(offer.bundle.header, where)
    except WorkspaceError as problem:
        raise unfit(problem.where, problem.expected, problem.found) from problem


def _check_base(offer: Offer, published: Header) -> None:
    shipped = {
        name.removeprefix(text.BASE_PREFIX): entry
        for name, entry in offer.bundle.payload.items()
        if name.startswith(text.BASE_PREFIX)
    }
    if shipped != dict(published.base_files):
        raise unfit(
            offer.where,
            "a bundle with the base model, since there is no workspace here yet",
            "one without" if not shipped else "another base than its header says",
            "get one made with `edge-pslora bundle --kind full --with-base`",
        )
    own = FileDigest(*_source_digest(published))
    _require(
        published.base_files[layout.SOURCE] == own, offer.where, "the source it names", "another"
    )


def _source_digest(published: Header) -> tuple[int, str]:
    data = strict_json.canonical(dict(published.source))
    return len(data), hashlib.sha256(data).hexdigest()


def result_files(staged: Path, offer: Offer) -> None:
    """The staged folder is what the publisher's generation was, in every byte."""
    found = manifest.describe_files(staged)
    if found != dict(offer.bundle.result):
        names = {*found, *offer.bundle.result}
        other = sorted(n for n in names if found.get(n) != offer.bundle.result.get(n))
        raise unfit(offer.where, "the files that the bundle promises", f"another {other[0]!a}")


def _require(condition: bool, where: str, expected: str, found: str) -> None:
    if not condition:
        raise unfit(where, expected, found)


def unfit(where: str, expected: str, found: str, remedy: str = _AGAIN) -> BundleError:
    return BundleError(where, expected=expected, found=found, remedy=remedy)
