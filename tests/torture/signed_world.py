"""A publisher, his keys and bundles, a device that took one of them, and forgers who hold some keys."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata
from tuf.ngclient._internal import trusted_metadata_set

from edge_pslora.device.apply import Report, Request, apply
from edge_pslora.device.verify import verify
from edge_pslora.errors import BundleError, EdgePsloraError
from edge_pslora.exporters.export_bundle import BundleOptions, described, export_bundle
from edge_pslora.signing import release, trusted
from edge_pslora.signing.keys import load_signers, make_keys
from edge_pslora.signing.repository import read_repository
from edge_pslora.update import bundle as text
from edge_pslora.update.bundle import Bundle
from edge_pslora.workspace import layout
from edge_pslora.workspace.lock import folder_lock
from edge_pslora.workspace.reading import digest_bytes
from edge_pslora.workspace.update_state import read_state
from tests.publisher_kit import make_publisher

CLASS = "camera"
Signers = Sequence[CryptoSigner]


@dataclass(frozen=True)
class World:
    """Folders below `place`. first: in full, signed by keys 0 and 1, taken by `device`. bundle: after key
    1 was revoked, signed by keys 0 and 2: root version 2, a delta on the first. other: the same files in
    another release. strangers: other keys.
    """

    place: Path
    keys: Signers
    strangers: Signers

    @property
    def root(self) -> Path:
        return self.place / "keys" / "root.json"

    @property
    def workspace(self) -> Path:
        return self.place / "w"

    @property
    def first(self) -> Path:
        return self.place / "first"

    @property
    def bundle(self) -> Path:
        return self.place / "bundle"

    @property
    def other(self) -> Path:
        return self.place / "other"

    @property
    def device(self) -> Path:
        return self.place / "device"

    @property
    def holders(self) -> Signers:
        """Of the keys that count."""
        return self.keys[0], self.keys[2]


def make_world(place: Path) -> World:
    opened = make_publisher(place / "w")
    made = make_keys(place / "keys", 3, 2, _days(365))
    others = make_keys(place / "strangers", 3, 2, _days(365))
    world = World(place, load_signers(made.files), load_signers(others.files))
    whole = BundleOptions(kind="full", device_classes=(CLASS, "phone"), with_base=True)
    export_bundle(opened.path, world.first, world.keys[:2], whole, root=world.root, generation=2)
    taken = Request(world.device, str(world.first), world.root, device_class=CLASS, accept=True)
    apply(taken)
    shutil.copytree(world.first, world.bundle)
    change_keys(world.bundle, world.holders, remove=[world.keys[1].public_key.keyid])
    delta = BundleOptions(kind="delta", device_classes=(CLASS,))
    export_bundle(opened.path, world.bundle, world.holders, delta)
    shutil.copytree(world.bundle, world.other)
    reissue(world.other, world.holders, lambda bundle: replace(bundle, counter=bundle.counter + 1))
    return world


def change_keys(folder: Path, signers: Signers, **change: Any) -> None:
    given = {"remove": (), "add": (), "expires": _days(365), **change}
    with folder_lock(folder):
        release.rotate(read_repository(folder), signers=signers, **given)


def reissue(
    folder: Path,
    signers: Signers,
    change: Callable[[Bundle], Bundle] = lambda bundle: bundle,
    expires: datetime | None = None,
) -> None:
    """The bundle that is there once more, saying something else, well signed by `signers`."""
    with folder_lock(folder):
        found = read_repository(folder)
        assert found.newest is not None
        data = text.encode(change(described(folder, found.newest)))
        digest = digest_bytes(data)
        release.put_bytes(folder, text.BUNDLE_FILE, data, digest)
        files = {**found.newest.files, text.BUNDLE_FILE: digest}
        release.add_release(found, files, expires or _days(30), signers)


def edit(path: Path, change: Callable[[Metadata], Any], signers: Signers = ()) -> None:
    """A file of metadata by a forger: whatever it says then, signed by `signers` if there are any."""
    found: Metadata = Metadata.from_bytes(path.read_bytes())
    change(found)
    if signers:
        found.signatures.clear()
    for signer in signers:
        found.sign(signer, append=True)
    path.write_bytes(found.to_bytes())


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content, sort_keys=True, separators=(",", ":")))


def metadata_of(folder: Path) -> dict[str, Path]:
    """The files that a device with the first root reads, by what they are."""
    place = folder / "metadata"
    (snapshot,) = place.glob("*.snapshot.json")
    (targets,) = place.glob("*.targets.json")
    names = {"root": place / "2.root.json", "timestamp": place / "timestamp.json"}
    return {**names, "snapshot": snapshot, "targets": targets}


def target_of(folder: Path, name: str) -> Path:
    (path,) = (folder / "targets").rglob(f"*.{name}")
    return path


def outcome(act: Callable[[], Any]) -> str:
    """ "" if a bundle was refused as it should be, in one line; else what happened."""
    try:
        act()
    except BundleError as problem:
        line = str(problem)
        return "" if "\n" not in line and len(line) < 1500 else f"not one line: {line[:80]!a}"
    except EdgePsloraError as problem:
        return f"refused as {type(problem).__name__}: {str(problem)[:120]}"
    except Exception as problem:  # noqa: BLE001 - whatever else escapes is what is looked for
        return f"{type(problem).__name__}: {str(problem)[:120]}"
    return "accepted"


def verified(world: World, source: Path | str, device: Path | None = None) -> Callable[[], Any]:
    return lambda: verify(str(source), None, device or world.device)


def applied(source: Path | str, device: Path) -> Callable[[], Report]:
    return lambda: apply(Request(device, str(source), accept=True))


def serving(device: Path) -> tuple[Any, ...]:
    """What must not change when a bundle is refused: pointer, generations, counter, trial."""
    state = read_state(device)
    assert state is not None
    names = sorted(path.name for path in (device / layout.GENERATIONS).iterdir())
    return (device / layout.CURRENT).read_bytes(), names, state.counter, state.trial


def before_floor(device: Path) -> datetime:
    """A time that this device knows to be past, whatever its clock says."""
    state = read_state(device)
    assert state is not None
    return state.clock_floor - timedelta(minutes=1)


@contextmanager
def clock_at(now: datetime) -> Iterator[None]:
    """Device and python-tuf believe that it is `now`."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Clock:
            return cls.fromtimestamp(now.timestamp(), tz)

    class Module:
        datetime = Clock
        timezone = trusted_metadata_set.datetime.timezone

    real, own = trusted_metadata_set.datetime, trusted.clock
    trusted_metadata_set.datetime, trusted.clock = Module, lambda: now
    try:
        yield
    finally:
        trusted_metadata_set.datetime, trusted.clock = real, own


def other_class(bundle: Bundle) -> Bundle:
    return replace(bundle, device_classes=("phone",))


def _days(days: float) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
