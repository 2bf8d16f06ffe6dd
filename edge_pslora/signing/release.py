"""What changes a bundle's folder, in an order that no reader and no kill sees half of.

Payload, N.targets.json, N.snapshot.json, then the timestamp; it becomes timestamp.json only once
enough keys signed all three, until then it waits as next.timestamp.json and devices take what was
there before. What is no longer referred to goes last. Signatures are only ever added to a file.

Versions are seconds since 1970, or one more than the last. So they grow from folder to folder as well:
a device that took one bundle takes a newer one that was begun elsewhere, and nobody can put together
the files of two, although no file holds the sha256 of another's (signatures are added to them later).

Every function that writes expects the caller to hold lock.folder_lock(folder).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from edge_pslora.errors import BundleError, UsageError
from edge_pslora.signing import metadata as form
from edge_pslora.signing import repository as reading
from edge_pslora.signing import roles
from edge_pslora.signing.repository import NEXT_ROOT, NEXT_TIMESTAMP, Release, Repository
from edge_pslora.workspace import durable
from edge_pslora.workspace.reading import FileDigest, digest_file, open_regular
from edge_pslora.workspace.staging import is_temporary

_VERSIONED = re.compile(r"([1-9][0-9]{0,11})\.(snapshot|targets)\.json")
_TARGET = re.compile(r"[0-9a-f]{64}\..+", re.DOTALL)


@dataclass(frozen=True)
class Standing:
    """How far a bundle is signed.

    root, release: the newest versions that devices take; release 0: none yet. signed: ids of the keys
    that signed the newest release. missing: signatures that a waiting release, or root, still lacks;
    0: nothing waits. expires: of the newest release, None if there is none.
    """

    root: int
    release: int
    signed: tuple[str, ...]
    threshold: int
    missing: int
    expires: datetime | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        expires = None if self.expires is None else self.expires.strftime("%Y-%m-%dT%H:%M:%SZ")
        return asdict(self) | {"signed": list(self.signed), "expires": expires}


def begin(folder: Path, root: Path | None) -> Repository:
    """Make `folder` a bundle's, or find that it is one.

    root: root.json, or another bundle's folder, whose roots are all taken over; for a new bundle.

    Raises:
        UsageError: other files in the folder, no root for a new bundle, or another one than it has.
    """
    known = reading.read_roots(folder)
    others = {entry.name for entry in folder.iterdir()} - {form.METADATA, form.TARGETS}
    if others and not known:
        raise UsageError(
            str(folder),
            expected="a new or empty folder, or a bundle",
            found=f"other files, such as {min(others)}",
            remedy="choose another OUT",
        )
    given = () if root is None else _given_roots(root)
    if not known and not given:
        raise UsageError(
            str(folder),
            expected="--root FILE, the root.json of edge-pslora keys init, for a new bundle",
            found="none",
            remedy="give it; a bundle that is there already keeps its own",
        )
    there = {found.signed.version: form.encode(found) for found in known}
    wanted = {found.signed.version: form.encode(found) for found in given}
    released = (folder / form.METADATA / form.TIMESTAMP_FILE).exists()
    for version, data in wanted.items():
        if there.get(version, b"" if released else data) != data:
            raise UsageError(
                "--root",
                expected=f"a root of {folder}: version {min(there)} to {max(there)}, as it is there",
                found=f"another one of version {version}",
                remedy="leave --root out to go on with that bundle, or choose another OUT",
            )
    for name in (form.METADATA, form.TARGETS):
        durable.make_folder(folder / name)
    for version in sorted(wanted.keys() - there.keys()):
        path = folder / form.METADATA / form.root_name(version)
        durable.write_bytes(path, wanted[version])
    return reading.read_repository(folder)


def put_file(folder: Path, name: str, source: Path, digest: FileDigest) -> None:
    """Copy a file to where the target `name` lies; one that is there already is kept.

    Raises:
        BundleError: the source is not what `digest` says.
    """
    with open_regular(source, error=BundleError) as (descriptor, size):
        path = _place(folder, name, digest)
        if path.is_file() and digest_file(path, error=BundleError) == digest:
            return
        with durable.new_file(path) as append:
            append.copy(descriptor, 0, size, source, error=BundleError)
            if append.digest() != digest:
                raise BundleError(
                    str(source),
                    expected=f"{digest.bytes} bytes with sha256 {digest.sha256[:12]}...",
                    found="other contents",
                    remedy="the file was changed after it was published; roll back or restore it",
                )


def put_bytes(folder: Path, name: str, data: bytes, digest: FileDigest) -> None:
    """Write the target `name`."""
    durable.write_bytes(_place(folder, name, digest), data)


def add_release(
    repository: Repository,
    files: Mapping[str, FileDigest],
    expires: datetime,
    signers: Sequence[CryptoSigner],
    now: datetime | None = None,
) -> Standing:
    """A new version that lists `files` (put there before), signed by `signers`.

    Args:
        now: None for the clock's time.

    Raises:
        UsageError: a signer that is none of the bundle's keys.
    """
    _require_known(repository, signers)
    version = _next_version(repository, now or datetime.now(UTC))
    listed = {n: TargetFile(d.bytes, {"sha256": d.sha256}, n) for n, d in sorted(files.items())}
    meta = {"targets.json": MetaFile(version)}
    release = Release(
        Metadata(Timestamp(version, expires=expires, snapshot_meta=MetaFile(version))),
        Metadata(Snapshot(version, expires=expires, meta=meta)),
        Metadata(Targets(version, expires=expires, targets=listed)),
    )
    reading.require_files(repository.folder, release)
    _write_signed(repository.folder, release, signers, NEXT_TIMESTAMP)
    return _settle(repository.folder)


def renew(repository: Repository, expires: datetime, signers: Sequence[CryptoSigner]) -> Standing:
    """The newest release once more, under a new version and with another expiry."""
    release = repository.newest
    if release is None:
        raise _nothing(repository)
    return add_release(repository, release.files, expires, signers)


def add_signatures(repository: Repository, signers: Sequence[CryptoSigner]) -> Standing:
    """Sign what waits for signatures, and the current release; a key signs once.

    Raises:
        UsageError: a signer that is none of the bundle's keys.
        BundleError: nothing to sign, or a file of the payload is missing or damaged.
    """
    _require_known(repository, signers)
    if repository.newest is None and repository.draft_root is None:
        raise _nothing(repository)
    current, draft, waiting = repository.current, repository.draft, repository.draft_root
    for release, name in ((current, form.TIMESTAMP_FILE), (draft, NEXT_TIMESTAMP)):
        if release is not None:
            reading.require_files(repository.folder, release)
            _write_signed(repository.folder, release, signers, name)
    if waiting is not None:
        _add(waiting, signers)
        path = repository.folder / form.METADATA / NEXT_ROOT
        durable.write_bytes(path, form.encode(waiting))
    return _settle(repository.folder)


def rotate(
    repository: Repository,
    *,
    remove: Sequence[str],
    add: Sequence[Key],
    expires: datetime,
    signers: Sequence[CryptoSigner],
    threshold: int | None = None,
) -> Standing:
    """The next root, signed by `signers`, and their signatures on what is there.

    It waits until enough keys of the old and of the new root signed it, and enough keys of the new one
    the release that devices take.

    Raises:
        UsageError: as roles.next_root, or a signer that is a key of neither root.
    """
    root = roles.next_root(repository.root, remove, add, expires, threshold)
    waiting = Metadata(root)
    rotated = Repository(
        repository.folder, repository.roots, repository.current, repository.draft, waiting
    )
    _require_known(rotated, signers)
    return add_signatures(rotated, signers)


def standing(repository: Repository) -> Standing:
    release, root = repository.newest, repository.root
    threshold = roles.threshold_of(root)
    signed = () if release is None else release.signers(root)
    missing = 0 if repository.draft is None else max(0, threshold - len(signed))
    waiting = repository.draft_root
    if waiting is not None:
        needs = [(root, roles.signers_of(root, waiting))]
        needs.append((waiting.signed, roles.signers_of(waiting.signed, waiting)))
        if repository.current is not None:
            needs.append((waiting.signed, repository.current.signers(waiting.signed)))
        lacking = [roles.threshold_of(one) - len(found) for one, found in needs]
        missing = max(missing, *lacking)
    return Standing(
        root=root.version,
        release=0 if repository.current is None else repository.current.version,
        signed=signed,
        threshold=threshold,
        missing=missing,
        expires=None if release is None else release.timestamp.signed.expires,
    )


def _settle(folder: Path) -> Standing:
    """Publish what has its signatures, remove what nothing refers to."""
    while True:
        found = reading.read_repository(folder)
        place = folder / form.METADATA
        if found.draft is not None and found.draft.is_signed(found.root):
            durable.write_bytes(place / form.TIMESTAMP_FILE, form.encode(found.draft.timestamp))
        elif _may_take_over(found):
            assert found.draft_root is not None
            name = form.root_name(found.draft_root.signed.version)
            durable.write_bytes(place / name, form.encode(found.draft_root))
        else:
            break
    for path in sorted(_left_over(found)):
        durable.remove_file(path)
    for path in sorted((folder / form.TARGETS).rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            with durable.storage_errors(path.parent, path.name):
                path.rmdir()
    return standing(found)


def _may_take_over(found: Repository) -> bool:
    """The root that waits has its signatures, and what devices take now is good under it, too."""
    waiting = found.draft_root
    if waiting is None:
        return False
    signed = roles.is_signed(found.root, waiting) and roles.is_signed(waiting.signed, waiting)
    return signed and (found.current is None or found.current.is_signed(waiting.signed))


def _left_over(found: Repository) -> Iterator[Path]:
    place = found.folder / form.METADATA
    releases = [release for release in (found.current, found.draft) if release is not None]
    live = {place / NEXT_TIMESTAMP} if found.draft is not None else set()
    live |= {place / NEXT_ROOT} if found.draft_root is not None else set()
    for release in releases:
        live.add(place / form.snapshot_name(release.snapshot.signed.version))
        live.add(place / form.targets_name(release.targets.signed.version))
        live |= {reading.target_path(found.folder, n, d) for n, d in release.files.items()}
    for path in place.iterdir():
        ours = _VERSIONED.fullmatch(path.name) or path.name in (NEXT_TIMESTAMP, NEXT_ROOT)
        if (ours or is_temporary(path.name)) and path not in live:
            yield path
    for path in (found.folder / form.TARGETS).rglob("*"):
        ours = _TARGET.fullmatch(path.name) or is_temporary(path.name)
        if ours and path not in live and not path.is_dir():
            yield path


def _write_signed(
    folder: Path, release: Release, signers: Sequence[CryptoSigner], timestamp: str
) -> None:
    """The three files of a release, the timestamp last, under the name `timestamp`."""
    place = folder / form.METADATA
    _add(release.targets, signers)
    _add(release.snapshot, signers)
    _add(release.timestamp, signers)
    name = form.targets_name(release.targets.signed.version)
    durable.write_bytes(place / name, form.encode(release.targets))
    name = form.snapshot_name(release.snapshot.signed.version)
    durable.write_bytes(place / name, form.encode(release.snapshot))
    durable.write_bytes(place / timestamp, form.encode(release.timestamp))


def _add(found: Metadata[form.Content], signers: Sequence[CryptoSigner]) -> None:
    """A key that signed already gives the same signature again."""
    for signer in signers:
        found.sign(signer, append=True)


def _require_known(repository: Repository, signers: Sequence[CryptoSigner]) -> None:
    known = set(repository.root.keys)
    if repository.draft_root is not None:
        known |= set(repository.draft_root.signed.keys)
    for signer in signers:
        if signer.public_key.keyid not in known:
            raise UsageError(
                "--key",
                expected=f"a key of {repository.folder}: {', '.join(sorted(k[:12] for k in known))}",
                found=f"key {signer.public_key.keyid[:12]}",
                remedy="give the file of one of them; edge-pslora keys rotate adds others",
            )


def _next_version(repository: Repository, now: datetime) -> int:
    """Above every version that is there, also of files that a killed run left; see the top."""
    place = repository.folder / form.METADATA
    matches = (_VERSIONED.fullmatch(path.name) for path in place.iterdir())
    found = [int(match[1]) for match in matches if match]
    releases = (repository.current, repository.draft)
    found += [release.version for release in releases if release is not None]
    return max(max(found, default=0) + 1, int(now.timestamp()))


def _place(folder: Path, name: str, digest: FileDigest) -> Path:
    """The path of a target, its folder made."""
    path = reading.target_path(folder, name, digest)
    for parent in reversed(path.relative_to(folder).parents[:-1]):
        durable.make_folder(folder / parent)
    return path


def _given_roots(root: Path) -> tuple[Metadata[Root], ...]:
    if root.is_dir():
        return reading.read_repository(root).roots
    return (reading.read_root(root),)


def _nothing(repository: Repository) -> BundleError:
    return BundleError(
        str(repository.folder),
        expected="a release to sign",
        found="none yet",
        remedy="make one: edge-pslora bundle WORKSPACE OUT --key FILE",
    )
