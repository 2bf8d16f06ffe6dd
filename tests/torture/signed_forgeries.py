"""Bundles that a device must not take, each made by somebody who can do that much and no more."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import SSlibKey
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root

from edge_pslora.exporters.export_bundle import BundleOptions, export_bundle
from edge_pslora.signing import roles
from edge_pslora.update.bundle import Bundle
from edge_pslora.workspace.reading import FileDigest
from tests.publisher_kit import make_publisher
from tests.torture import signed_world as w
from tests.torture.signed_world import World

Forge = Callable[[World, Path], Any]  # changes a copy of world.bundle
ROLES = ("timestamp", "snapshot", "targets")
LATER = timedelta(days=300)


def forgeries() -> dict[str, Forge]:
    """Those that are nothing but a changed copy of the good bundle."""
    found: dict[str, Forge] = {
        "an older counter": _says(lambda b: replace(b, counter=b.counter - 2)),
        "expired": lambda world, folder: w.reissue(
            folder, world.holders, expires=w.before_floor(world.device)
        ),
        "another class": _says(w.other_class),
        "another base": _another_base,
        "a parent that is not here": _says(
            lambda b: replace(b, parent_model=FileDigest(10, "0" * 64))
        ),
        "a result that is not shipped": _says(lambda b: replace(b, kind="full")),
        "signed by a revoked key": _revoked,
        "signed by strangers": lambda world, folder: _resign(folder, world.strangers),
        "signed by nobody": lambda world, folder: _resign(folder, ()),
        "one signature twice": _twice,
        "one signature under two names": _two_names,
        "a root with one key under two names": _twin_root,
        "a root with a lower threshold, by one key": _low_root,
        "a root of strangers": _strange_root,
        "a root version left out": _skipped_root,
        "an older root again": lambda world, folder: shutil.copy(
            folder / "metadata" / "1.root.json", folder / "metadata" / "2.root.json"
        ),
        "an expired root": _expired_root,
        "targets that others sign": _delegated,
        "one file for another": _swapped,
        "the timestamp of another bundle": _mixed("timestamp"),
        "the snapshot of another bundle": _mixed("snapshot"),
        "the targets of another bundle": _mixed("targets"),
        "the bundle.json of another bundle": _mixed_target("bundle.json"),
        "another file in place of the delta": lambda world, folder: shutil.copy(
            w.target_of(folder, "README.md"), w.target_of(folder, "delta.safetensors")
        ),
    }
    for name in ROLES:
        found[f"one signature on the {name}"] = _one_signature(name)
        found[f"an expired {name}"] = _expired(name)
    for name in (*ROLES, "bundle.json", "delta.safetensors", "README.md"):
        found[f"no {name}"] = lambda world, folder, name=name: _path(folder, name).unlink()
        found[f"a link in place of the {name}"] = _linked(name)
        found[f"a pipe in place of the {name}"] = _piped(name)
        found[f"a folder in place of the {name}"] = _foldered(name)
        found[f"a terabyte in place of the {name}"] = _huge(name)
    return found


def _says(change: Callable[[Bundle], Bundle]) -> Forge:
    return lambda world, folder: w.reissue(folder, world.holders, change)


def _another_base(world: World, folder: Path) -> None:
    """A good bundle of another workspace of the same publisher."""
    place = folder.with_name(f"{folder.name}.w")
    shutil.rmtree(place, ignore_errors=True)
    other = make_publisher(place, 2, seed=9)
    options = BundleOptions(kind="full", device_classes=(w.CLASS,), counter=90)
    export_bundle(other.path, folder, world.holders, options)


def _path(folder: Path, name: str) -> Path:
    return w.metadata_of(folder)[name] if name in ROLES else w.target_of(folder, name)


def _resign(folder: Path, signers: w.Signers, names: tuple[str, ...] = ROLES) -> None:
    for name in names:
        path = w.metadata_of(folder)[name]
        w.edit(path, lambda found: found.signatures.clear(), signers)


def _revoked(world: World, folder: Path) -> None:
    _resign(folder, world.keys[:2])


def _one_signature(name: str) -> Forge:
    return lambda world, folder: _resign(folder, world.holders[:1], (name,))


def _twice(world: World, folder: Path) -> None:
    for name in ROLES:
        path = w.metadata_of(folder)[name]
        w.edit_json(path, lambda found: found.update(signatures=[found["signatures"][0]] * 2))


def _two_names(world: World, folder: Path) -> None:
    def change(found: Metadata) -> None:
        one, other = (signer.public_key.keyid for signer in world.holders)
        found.signatures[other] = type(found.signatures[one])(
            other, found.signatures[one].signature
        )

    for name in ROLES:
        w.edit(w.metadata_of(folder)[name], change)


def _write_root(folder: Path, root: Root, signers: w.Signers, version: int = 3) -> None:
    found = Metadata(root)
    for signer in signers:
        found.sign(signer, append=True)
    (folder / "metadata" / f"{version}.root.json").write_bytes(found.to_bytes())


def _twin_root(world: World, folder: Path) -> None:
    """Two careless holders sign a root in which the thief's key stands under a second name."""
    stolen = world.holders[0]
    key = stolen.public_key
    twin = SSlibKey("0" * 64, key.keytype, key.scheme, dict(key.keyval))
    root = roles.new_root([key, twin, world.keys[2].public_key], 2, datetime.now(UTC) + LATER, 3)
    _write_root(folder, root, world.holders)

    def change(found: Metadata) -> None:
        found.signatures.clear()
        one = found.sign(stolen)
        found.signatures["0" * 64] = type(one)("0" * 64, one.signature)

    for name in ROLES:
        w.edit(w.metadata_of(folder)[name], change)


def _low_root(world: World, folder: Path) -> None:
    thief = world.holders[:1]
    keys = [signer.public_key for signer in world.holders]
    _write_root(folder, roles.new_root(keys, 1, datetime.now(UTC) + LATER, 3), thief)
    _resign(folder, thief)


def _strange_root(world: World, folder: Path) -> None:
    keys = [signer.public_key for signer in world.strangers]
    root = roles.new_root(keys, 2, datetime.now(UTC) + LATER, 3)
    _write_root(folder, root, [*world.strangers, world.keys[1]])
    _resign(folder, world.strangers)


def _skipped_root(world: World, folder: Path) -> None:
    keys = [signer.public_key for signer in world.holders]
    _write_root(folder, roles.new_root(keys, 2, datetime.now(UTC) + LATER, 4), world.holders)


def _expired_root(world: World, folder: Path) -> None:
    keys = [signer.public_key for signer in world.holders]
    gone = datetime.now(UTC) - timedelta(minutes=5)
    _write_root(folder, roles.new_root(keys, 2, gone, 3), world.holders)


def _expired(name: str) -> Forge:
    def change(found: Metadata) -> None:
        found.signed.expires = datetime.now(UTC) - timedelta(minutes=5)

    return lambda world, folder: w.edit(w.metadata_of(folder)[name], change, world.holders)


def _delegated(world: World, folder: Path) -> None:
    key = world.strangers[0].public_key
    role = DelegatedRole("others", [key.keyid], 1, True, paths=["*"])

    def change(found: Metadata) -> None:
        found.signed.delegations = Delegations({key.keyid: key}, {"others": role})

    w.edit(w.metadata_of(folder)["targets"], change, world.holders)


def _swapped(world: World, folder: Path) -> None:
    paths = w.metadata_of(folder)
    shutil.copy(paths["targets"], paths["snapshot"])


def _mixed(name: str) -> Forge:
    """One file of another release, just as well signed, under the name that this one's needs."""

    def forge(world: World, folder: Path) -> None:
        ours, theirs = w.metadata_of(folder), w.metadata_of(world.other)
        shutil.copy(theirs[name], ours[name])
        if name == "timestamp":  # it names another snapshot
            ours["snapshot"].rename(folder / "metadata" / theirs["snapshot"].name)

    return forge


def _mixed_target(name: str) -> Forge:
    def forge(world: World, folder: Path) -> None:
        shutil.copy(w.target_of(world.other, name), w.target_of(folder, name))

    return forge


def _linked(name: str) -> Forge:
    def forge(world: World, folder: Path) -> None:
        path = _path(folder, name)
        real = path.rename(folder.with_name(f"{folder.name}.{path.name}"))
        path.symlink_to(real)

    return forge


def _piped(name: str) -> Forge:
    def forge(world: World, folder: Path) -> None:
        path = _path(folder, name)
        path.unlink()
        os.mkfifo(path)

    return forge


def _foldered(name: str) -> Forge:
    def forge(world: World, folder: Path) -> None:
        path = _path(folder, name)
        path.unlink()
        path.mkdir()

    return forge


def _huge(name: str) -> Forge:
    """Sparse: the beginning is right, the rest are zeros that nobody stored."""
    return lambda world, folder: os.truncate(_path(folder, name), 1 << 40)
