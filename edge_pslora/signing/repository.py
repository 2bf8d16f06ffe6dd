"""A bundle's folder, read: a TUF repository with consistent snapshots, as its publisher goes on with it.

metadata/1.root.json ...       every root, for devices that know an older one
metadata/timestamp.json        names N.snapshot.json, which names N.targets.json: what devices take
metadata/next.timestamp.json   a release that lacks signatures; devices do not look at it
metadata/next.root.json        likewise a root
targets/[FOLDER/]SHA256.NAME   what N.targets.json lists
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from edge_pslora.errors import BundleError
from edge_pslora.signing import metadata as form
from edge_pslora.signing import roles
from edge_pslora.workspace.manifest import files_from_dict
from edge_pslora.workspace.reading import FileDigest, digest_file, read_limited

NEXT_TIMESTAMP, NEXT_ROOT = "next.timestamp.json", "next.root.json"
_ROOT_NAME = re.compile(r"([1-9][0-9]{0,8})\.root\.json")


@dataclass(frozen=True)
class Release:
    """A timestamp and what it leads to."""

    timestamp: Metadata[Timestamp]
    snapshot: Metadata[Snapshot]
    targets: Metadata[Targets]

    @property
    def version(self) -> int:
        return self.timestamp.signed.version

    @property
    def files(self) -> Mapping[str, FileDigest]:
        """Length and sha256 of every target, by name."""
        return {
            name: FileDigest(target.length, target.hashes["sha256"])
            for name, target in self.targets.signed.targets.items()
        }

    def signers(self, root: Root) -> tuple[str, ...]:
        """Ids of the keys of `root` that signed all three of its files."""
        found = set(roles.signers_of(root, self.timestamp))
        found &= set(roles.signers_of(root, self.snapshot))
        return tuple(sorted(found & set(roles.signers_of(root, self.targets))))

    def is_signed(self, root: Root) -> bool:
        """Whether enough keys of `root` signed each of its files."""
        signed = roles.is_signed(root, self.timestamp) and roles.is_signed(root, self.snapshot)
        return signed and roles.is_signed(root, self.targets)


@dataclass(frozen=True)
class Repository:
    """What is in a bundle's folder. roots: ascending, each version after the one before.

    current: what devices take, None before the first. draft and draft_root: what lacks signatures.
    """

    folder: Path
    roots: tuple[Metadata[Root], ...]
    current: Release | None
    draft: Release | None
    draft_root: Metadata[Root] | None

    @property
    def root(self) -> Root:
        """The newest that devices take."""
        return self.roots[-1].signed

    @property
    def newest(self) -> Release | None:
        """The draft, or else the current release."""
        return self.draft or self.current


def read_repository(folder: Path) -> Repository:
    """Raises:
    BundleError: no bundle, or a damaged one.
    """
    roots = read_roots(folder)
    if not roots:
        raise BundleError(
            str(folder),
            expected=f"a bundle (a folder with {form.METADATA}/1.root.json)",
            found="none",
            remedy="make one: edge-pslora bundle WORKSPACE OUT --key FILE --root FILE",
        )
    current = _release(folder, form.TIMESTAMP_FILE)
    draft = _release(folder, NEXT_TIMESTAMP)
    if draft is not None and current is not None and draft.version <= current.version:
        draft = None  # it was published; the kill came before its removal
    draft_root = _draft_root(folder)
    if draft_root is not None and draft_root.signed.version != roots[-1].signed.version + 1:
        draft_root = None
    return Repository(folder, roots, current, draft, draft_root)


def read_roots(folder: Path) -> tuple[Metadata[Root], ...]:
    """Every root in a bundle's folder, ascending, each signed as TUF wants it; () if there is none.

    Raises:
        BundleError: a version is missing, or not signed by enough keys of the one before.
    """
    place = folder / form.METADATA
    names = [entry.name for entry in place.iterdir()] if place.is_dir() else []
    versions = sorted(int(match[1]) for match in map(_ROOT_NAME.fullmatch, names) if match)
    found: list[Metadata[Root]] = []
    for version in versions:
        path = place / form.root_name(version)
        root = read_root(path)
        if found:
            roles.check_next_root(found[-1].signed, root, str(path))
        if root.signed.version != version:
            raise _foreign(str(path), f"version {version}", f"version {root.signed.version}")
        found.append(root)
    return tuple(found)


def read_root(path: Path) -> Metadata[Root]:
    """A root that enough of its own keys signed.

    Raises:
        BundleError: not a root, or one that edge-pslora would not make.
    """
    data = read_limited(path, form.MAX_ROOT, error=BundleError)
    found = form.parse(data, Root, str(path))
    roles.require_signed(roles.check_root(found, str(path)), found, str(path))
    return found


def target_path(folder: Path, name: str, digest: FileDigest) -> Path:
    """Where the file of a target lies: its name has its sha256 before it."""
    target = TargetFile(digest.bytes, {"sha256": digest.sha256}, name)
    return folder / form.TARGETS / target.get_prefixed_paths()[0]


def require_files(folder: Path, release: Release) -> None:
    """Every target is there with its length and sha256: nobody signs what he has not got.

    Raises:
        BundleError: one is missing or damaged.
    """
    for name, digest in release.files.items():
        path = target_path(folder, name, digest)
        if digest_file(path, error=BundleError) != digest:
            raise BundleError(
                str(path),
                expected=f"{digest.bytes} bytes with sha256 {digest.sha256[:12]}...",
                found="other contents",
                remedy="make the bundle again: edge-pslora bundle",
            )


def _release(folder: Path, timestamp_name: str) -> Release | None:
    place = folder / form.METADATA
    path = place / timestamp_name
    if not path.exists() and not path.is_symlink():
        return None
    data = read_limited(path, form.MAX_TIMESTAMP, error=BundleError)
    timestamp = form.parse(data, Timestamp, str(path))
    path = place / form.snapshot_name(timestamp.signed.snapshot_meta.version)
    data = read_limited(path, form.MAX_SNAPSHOT, error=BundleError)
    snapshot = form.parse(data, Snapshot, str(path))
    path = place / form.targets_name(_targets_version(snapshot.signed, str(path)))
    data = read_limited(path, form.MAX_TARGETS, error=BundleError)
    targets = form.parse(data, Targets, str(path))
    _check_targets(targets.signed, str(path))
    return Release(timestamp, snapshot, targets)


def _targets_version(snapshot: Snapshot, where: str) -> int:
    if snapshot.meta.keys() != {"targets.json"}:
        raise _foreign(where, "targets.json alone", str(sorted(snapshot.meta)))
    return snapshot.meta["targets.json"].version


def _check_targets(targets: Targets, where: str) -> None:
    if targets.delegations is not None:
        raise _foreign(where, "no delegations", "some")
    content = {}
    for name, target in targets.targets.items():
        if target.hashes.keys() != {"sha256"}:
            raise _foreign(where, f"the sha256 of {name}", str(sorted(target.hashes)))
        content[name] = {"bytes": target.length, "sha256": target.hashes["sha256"]}
    files_from_dict(content, where)


def _draft_root(folder: Path) -> Metadata[Root] | None:
    path = folder / form.METADATA / NEXT_ROOT
    if not path.exists() and not path.is_symlink():
        return None
    data = read_limited(path, form.MAX_ROOT, error=BundleError)
    found = form.parse(data, Root, str(path))
    roles.check_root(found, str(path))
    return found


def _foreign(where: str, expected: str, found: str) -> BundleError:
    return BundleError(
        where,
        expected=expected,
        found=found[:120],
        remedy="this is not a bundle that edge-pslora made; start a new folder",
    )
