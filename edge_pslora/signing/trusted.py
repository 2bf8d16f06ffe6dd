"""Whom this device trusts, and checking a bundle's metadata against it with python-tuf's own client.

updates/trusted/ holds pinned.json (the root given the first time), root.json (the newest root that its
holders signed on to) and the last timestamp, snapshot and targets. python-tuf replaces files without
fsync and one after the other, so it works on a private copy; what it found right is published here,
each file in one step and the root first. Any beginning of that order is a state to go on from: files
of the old keys no longer count and are fetched again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    RepositoryError,
    StorageError,
)
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edge_pslora.errors import BundleError, UsageError
from edge_pslora.signing import metadata as form
from edge_pslora.signing import roles
from edge_pslora.signing.sources import CHUNK, MissingFileError, Source, read
from edge_pslora.workspace import durable
from edge_pslora.workspace.reading import FileDigest, read_limited

PINNED = "pinned.json"
ROOT, TIMESTAMP, SNAPSHOT, TARGETS = "root.json", "timestamp.json", "snapshot.json", "targets.json"
LIMITS = {
    ROOT: form.MAX_ROOT,
    TIMESTAMP: form.MAX_TIMESTAMP,
    SNAPSHOT: form.MAX_SNAPSHOT,
    TARGETS: form.MAX_TARGETS,
}
_MOST_ROTATIONS = 64
_AGAIN = "get the bundle again, or tell who made it"


@dataclass(frozen=True)
class Trust:
    """pinned: the root given the first time; files: the last trusted ones, root.json always there."""

    pinned: bytes
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Verified:
    """Metadata that enough keys signed and that has not expired.

    targets: length and sha256 of every signed file. expires: when the first of it does. files: what
    to publish.
    """

    pinned: bytes
    files: Mapping[str, bytes]
    targets: Mapping[str, FileDigest]
    root_version: int
    expires: datetime


def load_trust(folder: Path | None, given: Path | None) -> Trust:
    """What a device trusts: its own files, or the first time the root that the user gives.

    Args:
        folder: updates/trusted, None or missing where there is none yet.

    Raises:
        UsageError: nothing trusted yet and no root given.
        BundleError: the root given is none, or another than the one pinned here.
    """
    root = None if given is None else read_limited(given, form.MAX_ROOT, error=BundleError)
    pinned = None if folder is None else _stored(folder, PINNED)
    if pinned is None or folder is None:
        if root is None:
            raise UsageError(
                "--root",
                expected="a root.json the first time: who may sign updates for this device",
                found="none, and none is trusted yet",
                remedy="give the root.json of `edge-pslora keys init`, from a trustworthy place",
            )
        _check_root(root, str(given))
        return Trust(root, {ROOT: root})
    files = {name: data for name in LIMITS if (data := _stored(folder, name)) is not None}
    files.setdefault(ROOT, pinned)
    if root is not None and root not in (pinned, files[ROOT]):
        raise BundleError(
            str(given),
            expected=f"the root pinned in {folder}, sha256 {_short(pinned)}",
            found=f"another, sha256 {_short(root)}",
            remedy="leave --root out; roots change by rotation, in a bundle that the old keys signed",
        )
    return Trust(pinned, files)


def verify(source: Source, trust: Trust, private: Path, floor: datetime) -> Verified:
    """Run python-tuf's client on `source`, and check what it leaves to others.

    Args:
        private: an existing, empty folder for the client to work in.
        floor: no clock is believed to be earlier.

    Raises:
        BundleError: not signed by enough keys, damaged, older than what is trusted, or expired by the
            device's clock or by the floor.
    """
    fetcher = _Fetcher(source)
    _refresh(fetcher, trust.files, private)
    if TIMESTAMP in trust.files and _is_known(fetcher, private):
        for name in (TIMESTAMP, SNAPSHOT, TARGETS):
            (private / name).unlink()
        _refresh(fetcher, {ROOT: trust.files[ROOT]}, private)
    return _checked(fetcher, trust, private, floor)


def _refresh(fetcher: _Fetcher, files: Mapping[str, bytes], private: Path) -> None:
    """python-tuf's own workflow, from `files` on; what it trusts then lies in `private`."""
    config = UpdaterConfig(
        max_root_rotations=_MOST_ROTATIONS,
        max_delegations=1,
        root_max_length=form.MAX_ROOT,
        timestamp_max_length=form.MAX_TIMESTAMP,
        snapshot_max_length=form.MAX_SNAPSHOT,
        targets_max_length=form.MAX_TARGETS,
    )
    where = fetcher.source.where
    with durable.storage_errors(private, "metadata"), _tuf_errors(where):
        for name in (TIMESTAMP, SNAPSHOT, TARGETS):
            if name in files:
                durable.write_bytes(private / name, files[name])
        updater = Updater(
            str(private),
            f"{form.METADATA}/",
            fetcher=fetcher,
            config=config,
            bootstrap=files[ROOT],
        )
        updater.refresh()


def _is_known(fetcher: _Fetcher, private: Path) -> bool:
    """Whether the source has a release of the number that this device knows.

    python-tuf then keeps what it has, and this is looked at as if it were new. Two bundles of one
    number are common: a delta, and the same in full for new devices. Neither is older than the other.
    """
    where = fetcher.source.where
    known = form.parse(_private(private, TIMESTAMP), Timestamp, where).signed
    offered = form.parse(fetcher.timestamp, Timestamp, where).signed
    return offered.version == known.version and (
        offered.snapshot_meta.version >= known.snapshot_meta.version
    )


def publish(folder: Path, verified: Verified) -> None:
    """Make `verified` what this device trusts; only what changed is written."""
    durable.make_folder(folder.parent)
    durable.make_folder(folder)
    for name, data in {PINNED: verified.pinned, **verified.files}.items():
        durable.remove_leftovers(folder, name)
        if _stored(folder, name) != data:
            durable.write_bytes(folder / name, data)


def clock() -> datetime:
    """What the device says that it is; python-tuf asks it too."""
    return datetime.now(UTC)


def target_name(name: str, digest: FileDigest) -> str:
    """Where a bundle keeps a target: its name with the sha256 before it."""
    folder, slash, last = name.rpartition("/")
    return f"{form.TARGETS}/{folder}{slash}{digest.sha256}.{last}"


def stream_target(source: Source, name: str, digest: FileDigest) -> Iterator[bytes]:
    """The contents of a signed file; the last part is given away only if the whole is right.

    Raises:
        BundleError: another length or other contents; no more than one byte too many was read.
    """
    where, found, length = f"{source.where}, {name}", hashlib.sha256(), 0
    last = b""
    for part in source.stream(target_name(name, digest), digest.bytes):
        length += len(part)
        if length > digest.bytes:
            break
        found.update(part)
        if last:
            yield last
        last = part
    if length != digest.bytes or found.hexdigest() != digest.sha256:
        raise BundleError(
            where,
            expected=f"{digest.bytes} bytes with sha256 {digest.sha256[:12]}...",
            found=f"{'more' if length > digest.bytes else length} bytes"
            if length != digest.bytes
            else "other contents",
            remedy="copy the bundle again; nothing of this file was used",
        )
    yield last


class _Fetcher(FetcherInterface):
    """python-tuf's way to a source. Every file has to be in the one form that we write."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.roots: list[bytes] = []
        self.timestamp = b""

    def _fetch(self, url: str) -> Iterator[bytes]:
        yield from self.source.stream(url, CHUNK)

    def download_bytes(self, url: str, max_length: int) -> bytes:
        try:
            data = read(self.source, url, max_length)
        except MissingFileError as problem:
            raise DownloadHTTPError(str(problem), 404) from problem
        name = url.rpartition("/")[2]
        name = name.partition(".")[2] if name[0].isdigit() else name
        where = f"{self.source.where}, {url}"
        if name == ROOT:
            form.parse(data, Root, where)
            self.roots.append(data)
        elif name == TIMESTAMP:
            form.parse(data, Timestamp, where)
            self.timestamp = data
        elif name == SNAPSHOT:
            form.parse(data, Snapshot, where)
        else:
            form.parse(data, Targets, where)
        return data


def _checked(fetcher: _Fetcher, trust: Trust, private: Path, floor: datetime) -> Verified:
    """What python-tuf does not look at: wrong signatures beside enough right ones, other clocks."""
    where, roots = fetcher.source.where, fetcher.roots
    root = _check_root(trust.files[ROOT], where)
    for data in roots:
        name = f"{where}, {form.root_name(root.version + 1)}"
        root = roles.check_next_root(root, form.parse(data, Root, name), name)
    files = {ROOT: roots[-1] if roots else trust.files[ROOT]}
    files |= {name: _private(private, name) for name in (TIMESTAMP, SNAPSHOT, TARGETS)}
    timestamp = form.parse(files[TIMESTAMP], Timestamp, f"{where}, {TIMESTAMP}")
    offered = form.parse(fetcher.timestamp, Timestamp, f"{where}, {TIMESTAMP}")
    roles.require_signed(root, offered, f"{where}, {TIMESTAMP}")
    if offered.signed != timestamp.signed:
        raise _refused(
            where, "a release that is not older than the last", "an older snapshot in it"
        )
    snapshot = form.parse(files[SNAPSHOT], Snapshot, f"{where}, {SNAPSHOT}")
    targets = form.parse(files[TARGETS], Targets, f"{where}, {TARGETS}")
    roles.require_signed(root, timestamp, f"{where}, {TIMESTAMP}")
    roles.require_signed(root, snapshot, f"{where}, {SNAPSHOT}")
    roles.require_signed(root, targets, f"{where}, {TARGETS}")
    now = max(clock(), floor)
    times = {
        ROOT: root.expires,
        TIMESTAMP: timestamp.signed.expires,
        SNAPSHOT: snapshot.signed.expires,
        TARGETS: targets.signed.expires,
    }
    for name, expires in times.items():
        if expires <= now:
            raise _expired(where, f"{name} of {expires:%Y-%m-%d %H:%M} UTC", now)
    if targets.signed.delegations is not None:
        raise _refused(where, "targets of its own", "targets that others would sign")
    return Verified(
        pinned=trust.pinned,
        files=files,
        targets={name: _digest(name, file, where) for name, file in targets.signed.targets.items()},
        root_version=root.version,
        expires=min(times.values()),
    )


def _private(private: Path, name: str) -> bytes:
    return read_limited(private / name, LIMITS[name], error=BundleError)


def _digest(name: str, file: object, where: str) -> FileDigest:
    length, hashes = getattr(file, "length", None), getattr(file, "hashes", {})
    if not isinstance(length, int) or hashes.keys() != {"sha256"}:
        raise _refused(f"{where}, {name!a}", "a length and a sha256", f"{sorted(hashes)}")
    return FileDigest(length, hashes["sha256"])


def _check_root(data: bytes, where: str) -> Root:
    found: Metadata[Root] = form.parse(data, Root, where)
    root = roles.check_root(found, where)
    roles.require_signed(root, found, where)
    return root


def _stored(folder: Path, name: str) -> bytes | None:
    path = folder / name
    if not path.exists() and not path.is_symlink():
        return None
    return read_limited(path, LIMITS.get(name, form.MAX_ROOT), error=BundleError)


@contextmanager
def _tuf_errors(where: str) -> Iterator[None]:
    try:
        yield
    except ExpiredMetadataError as problem:
        raise _expired(where, str(problem), clock()) from problem
    except (RepositoryError, StorageError) as problem:
        raise _refused(where, "metadata that this device can trust", str(problem)) from problem
    except DownloadError as problem:
        cause = problem.__cause__
        if isinstance(cause, BundleError):
            raise cause from problem
        raise _refused(where, "a bundle that can be read", str(problem)) from problem


def _expired(where: str, found: str, now: datetime) -> BundleError:
    return BundleError(
        where,
        expected=f"a bundle that is valid at {now:%Y-%m-%d %H:%M} UTC, the device's time",
        found=f"expired: {found}",
        remedy="get a newer bundle; if the date is wrong, set the clock",
    )


def _refused(where: str, expected: str, found: str, remedy: str = _AGAIN) -> BundleError:
    return BundleError(where, expected=expected, found=found or "others", remedy=remedy)


def _short(data: bytes) -> str:
    return f"{hashlib.sha256(data).hexdigest()[:12]}..."
