"""`edge-pslora bundle`: a generation as a signed update, whole or as a delta. No torch.

The same folder is gone on with: a new version of its metadata, the next counter. What devices take
changes in one step, when enough keys signed (edge_pslora.signing.release).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from securesystemslib.signer import CryptoSigner

from edge_pslora.errors import BundleError, GateRefusedError, UsageError
from edge_pslora.exporters.bundle_files import Payload, delta_payload, full_payload
from edge_pslora.exporters.bundle_tar import write_tar
from edge_pslora.signing import release as signing
from edge_pslora.signing.release import Standing
from edge_pslora.signing.repository import Release, Repository, target_path
from edge_pslora.update import bundle as text
from edge_pslora.update.bundle import Bundle, BundleKind
from edge_pslora.workspace import durable, layout, manifest, strict_json
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.lock import folder_lock
from edge_pslora.workspace.reading import digest_bytes, read_limited
from edge_pslora.workspace.workspace import Workspace

_SPARE_BYTES = 1 << 20
DAY = 86_400.0


@dataclass(frozen=True)
class BundleOptions:
    """kind: auto is a delta where there is a parent, a smaller delta and no base. counter: None: the next.

    expires: seconds from now on. learn: ship what further sessions need as well (adapter, history, head
    and the anchor set, which holds samples). with_base: ship the base, for devices without a workspace.
    """

    kind: BundleKind | Literal["auto"] = "auto"
    device_classes: tuple[str, ...] = (text.DEFAULT_DEVICE_CLASS,)
    counter: int | None = None
    expires: float = 30 * DAY
    learn: bool = False
    with_base: bool = False
    tar: bool = False


@dataclass(frozen=True)
class BundleResult:
    """What was made. files: names of the payload. standing: whose signatures it has, and lacks.

    tar: the file beside the folder, None where none was asked for or signatures are missing.
    """

    out: str
    kind: BundleKind
    generation: int
    counter: int
    device_classes: tuple[str, ...]
    bytes: int
    files: tuple[str, ...]
    standing: Standing
    tar: str | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"standing": self.standing.to_dict()}


def export_bundle(
    workspace: Path,
    out: Path,
    signers: Sequence[CryptoSigner],
    options: BundleOptions,
    *,
    root: Path | None = None,
    generation: int | None = None,
    now: datetime | None = None,
) -> BundleResult:
    """Make the folder `out` a signed bundle of one generation, or go on with the one that is there.

    Args:
        out: a new, empty or bundle folder outside the workspace.
        root: root.json, or a bundle's folder to take the roots of; for a new bundle.
        generation: its number; None for the one that serves.
        now: the time that is signed; None for the clock's.

    Raises:
        UsageError: `out` cannot be used, no such kind of bundle, or a counter that devices have seen.
        WorkspaceError: a file is not what was published.
        GateRefusedError: a delta that does not give the published model.
        WorkspaceLockedError: another process writes to `out`.
    """
    opened = Workspace.open(workspace)
    chosen = opened.published(generation)
    now = (now or datetime.now(UTC)).replace(microsecond=0)
    _check_options(options)
    out = out.absolute()
    _check_place(out, workspace)
    durable.make_folder(out)
    with folder_lock(out), _beside(out) as staged:
        repository = signing.begin(out, root)
        counter = _counter(options.counter, repository, chosen)
        payload, notes = _payload(opened, chosen, options, staged)
        needed = sum(entry.bytes for entry in payload.digests.values())
        durable.require_free_space(out, needed + _SPARE_BYTES)
        bundle = Bundle(
            kind=payload.kind,
            counter=counter,
            signed_at=now,
            device_classes=options.device_classes,
            parent_model=payload.parent_model,
            header=strict_json.read(workspace / layout.WORKSPACE_FILE, limit=manifest.MAX_MANIFEST),
            manifest=chosen.manifest,
            payload=payload.digests,
            result=payload.result,
        )
        data = text.encode(bundle)
        for name, source in payload.sources.items():
            signing.put_file(out, name, source, payload.digests[name])
        described = digest_bytes(data)
        signing.put_bytes(out, text.BUNDLE_FILE, data, described)
        files = {**payload.digests, text.BUNDLE_FILE: described}
        expires = now + timedelta(seconds=options.expires)
        standing = signing.add_release(repository, files, expires, signers, now)
        tar = write_tar(out) if options.tar and not standing.missing else None
    return BundleResult(
        out=str(out),
        kind=bundle.kind,
        generation=chosen.number,
        counter=counter,
        device_classes=options.device_classes,
        bytes=bundle.bytes,
        files=tuple(sorted(payload.digests)),
        standing=standing,
        tar=None if tar is None else str(tar),
        notes=tuple(notes),
    )


def described(folder: Path, release: Release) -> Bundle:
    """What bundle.json of a release in a bundle's folder says.

    Raises:
        BundleError: it is missing, damaged or of another version.
    """
    digest = release.files.get(text.BUNDLE_FILE)
    if digest is None or digest.bytes > text.MAX_BUNDLE:
        raise BundleError(
            str(folder),
            expected=f"a {text.BUNDLE_FILE} of at most {text.MAX_BUNDLE} bytes",
            found="none" if digest is None else f"{digest.bytes} bytes",
            remedy="this is not a bundle that edge-pslora made; start a new folder",
        )
    path = target_path(folder, text.BUNDLE_FILE, digest)
    data = read_limited(path, text.MAX_BUNDLE, error=BundleError)
    if digest_bytes(data) != digest:
        raise BundleError(
            str(path),
            expected=f"{digest.bytes} bytes with sha256 {digest.sha256[:12]}...",
            found="other contents",
            remedy="make the bundle again: edge-pslora bundle",
        )
    return text.decode(data, str(path))


def require_past(bundle: Bundle, where: Path, now: datetime) -> None:
    """No holder of a key signs a time that has not come.

    Devices never believe in a time before the newest that was signed: one from a clock that is wrong by
    years would make them take every later bundle for expired.

    Raises:
        BundleError: it was made more than a day from now on.
    """
    if bundle.signed_at > now + timedelta(days=1):
        raise BundleError(
            str(where),
            expected=f"a bundle made before {now:%Y-%m-%d %H:%M} UTC, the time here",
            found=f"one of {bundle.signed_at:%Y-%m-%d %H:%M} UTC",
            remedy="set the clock that is wrong; make the bundle again if it was its maker's",
        )


def _payload(
    opened: Workspace, chosen: Generation, options: BundleOptions, staged: Path
) -> tuple[Payload, list[str]]:
    """What to ship, and what the user should know about the choice."""
    extra = {"learn": options.learn, "with_base": options.with_base}
    if options.kind == "full":
        return full_payload(opened, chosen, **extra), []
    if options.kind == "delta":
        return delta_payload(opened, chosen, staged, **extra), []
    full = full_payload(opened, chosen, **extra)
    if options.with_base:
        return full, [
            "full: devices without a workspace have nothing that a delta could go on from"
        ]
    if chosen.manifest.parent is None:
        return full, ["full: a first generation has no generation before it"]
    try:
        delta = delta_payload(opened, chosen, staged, **extra)
    except (UsageError, GateRefusedError) as problem:
        return full, [f"full: no delta, {problem.found} ({problem.expected} is needed)"]
    if delta.bytes >= full.bytes:
        return full, [f"full: a delta would take {delta.bytes} bytes, this {full.bytes}"]
    return delta, [f"delta: {delta.bytes} bytes, in full {full.bytes}"]


def _counter(wanted: int | None, repository: Repository, chosen: Generation) -> int:
    releases = [r for r in (repository.current, repository.draft) if r is not None]
    last = max((described(repository.folder, r).counter for r in releases), default=0)
    if wanted is None:
        return max(last + 1, chosen.manifest.counter, 1)
    if wanted <= last:
        raise UsageError(
            "--counter",
            expected=f"more than {last}, the counter of the bundle that is there",
            found=f"{wanted}",
            remedy="devices that took that one would never take this: leave --counter out",
        )
    return wanted


def _check_options(options: BundleOptions) -> None:
    names = options.device_classes
    good = names and all(map(text.is_device_class, names)) and len(set(names)) == len(names)
    if not good:
        raise UsageError(
            "--device-class",
            expected="different names of letters, digits, '_', '.', '-', at most 64 of them",
            found=ascii(", ".join(names))[:80],
            remedy="give other names",
        )
    if options.expires <= 0:
        raise UsageError(
            "--expires",
            expected="a time to come",
            found=f"{options.expires} seconds",
            remedy="give a duration such as 30d",
        )


def _check_place(out: Path, workspace: Path) -> None:
    home = workspace.resolve()
    expected = found = None
    if out.resolve() == home or home in out.resolve().parents:
        expected, found = "a folder outside the workspace", f"one in {workspace}"
    elif not out.parent.is_dir():
        expected, found = "a name in an existing folder", f"no folder {out.parent}"
    elif out.is_symlink() or (out.exists() and not out.is_dir()):
        expected, found = "a folder", "a file or a link"
    if expected is not None and found is not None:
        raise UsageError(str(out), expected=expected, found=found, remedy="choose another OUT")


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """An empty folder for what is made on the way; gone at the end."""
    staged = out.with_name(f".{out.name}.edge-pslora-new")
    with durable.storage_errors(out.parent, out.name):
        shutil.rmtree(staged, ignore_errors=True)  # of a killed run
        staged.mkdir()
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)
