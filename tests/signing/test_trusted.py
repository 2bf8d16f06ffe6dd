"""What a device takes for signed: python-tuf's answer, and what it leaves to us."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest
from tuf.ngclient._internal import trusted_metadata_set

from edge_pslora.errors import BundleError, UsageError
from edge_pslora.signing import trusted
from edge_pslora.signing.sources import open_source
from edge_pslora.signing.trusted import Verified, load_trust, publish, stream_target, verify
from edge_pslora.workspace import durable
from tests.signing.signing_kit import keys_in, soon
from tests.signing.signing_kit import publish as make

FLOOR = datetime(2026, 1, 1, tzinfo=UTC)
FILES = {"bundle.json": b"{}", "base/model": b"m" * 3000}


@dataclass(frozen=True)
class Place:
    """A bundle, a device's trust, and a root."""

    bundle: Path
    folder: Path
    root: Path
    private: Path

    def verify(
        self, *, floor: datetime = FLOOR, root: bool = True, bundle: Path | None = None
    ) -> Verified:
        trust = load_trust(self.folder, self.root if root else None)
        shutil.rmtree(self.private, ignore_errors=True)
        self.private.mkdir()
        with open_source(str(bundle or self.bundle)) as source:
            return verify(source, trust, self.private, floor)

    def take(self, *, root: bool = True) -> Verified:
        found = self.verify(root=root)
        self.folder.parent.mkdir(exist_ok=True)
        publish(self.folder, found)
        return found

    def metadata(self, name: str) -> Path:
        return self.bundle / "metadata" / name


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return keys_in(tmp_path_factory.mktemp("signers") / "keys")


@pytest.fixture
def place(keys, tmp_path, monkeypatch) -> Place:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # thousands of them, of no use here
    new, signers = keys
    root = new.files[0].parent / "root.json"
    make(tmp_path / "bundle", FILES, signers[:2], root)
    return Place(tmp_path / "bundle", tmp_path / "device/trusted", root, tmp_path / "private")


def test_trust_is_pinned_at_first_use_and_goes_on_without_a_root(place, tmp_path):
    with pytest.raises(UsageError, match="--root"):
        place.verify(root=False)
    found = place.take()
    assert found.root_version == 1
    assert set(found.targets) == set(FILES)
    assert place.take(root=False).files == found.files
    with open_source(str(place.bundle)) as source:
        for name, data in FILES.items():
            assert b"".join(stream_target(source, name, found.targets[name])) == data
    other, _ = keys_in(tmp_path / "other")
    with pytest.raises(BundleError, match="pinned"):
        load_trust(place.folder, other.files[0].parent / "root.json")


def test_a_key_counts_once_and_one_is_not_enough(place, keys, tmp_path):
    _, signers = keys
    for few in (signers[:1], [signers[0], signers[0]]):
        bundle = tmp_path / f"bundle-{len(few)}"
        make(bundle, FILES, few, place.root)
        waiting = bundle / "metadata/next.timestamp.json"
        waiting.rename(bundle / "metadata/timestamp.json")
        with pytest.raises(BundleError, match="1/2 keys"):
            place.verify(bundle=bundle)
    assert not place.folder.exists()


def test_strangers_keys_count_for_nothing(place, tmp_path):
    new, signers = keys_in(tmp_path / "strangers")
    make(tmp_path / "theirs", FILES, signers[:2], new.files[0].parent / "root.json")
    with pytest.raises(BundleError, match="0/2 keys"):
        place.verify(bundle=tmp_path / "theirs")


@pytest.mark.parametrize("known", [False, True])
def test_no_flipped_bit_of_metadata_is_taken(known, place):
    """A share of all here; the torture flips every one.

    known: the device has taken this release already; python-tuf then keeps the timestamp that it has,
    and what is offered has to be whole all the same.
    """
    if known:
        place.take()
    refused = 0
    for path in sorted((place.bundle / "metadata").iterdir()):
        if path.name == "1.root.json" or (known and path.name != "timestamp.json"):
            continue  # the device has it already: nobody fetches it
        good = path.read_bytes()
        for bit in range(len(path.name) % 7, 8 * len(good), 97):
            data = bytearray(good)
            data[bit // 8] ^= 1 << bit % 8
            path.write_bytes(data)
            with pytest.raises(BundleError):
                place.verify()
            refused += 1
        path.write_bytes(good)
    assert refused > 40
    place.take()


@pytest.mark.parametrize("name", ["timestamp.json", "*.snapshot.json", "*.targets.json"])
def test_missing_endless_and_other_files(name, place):
    (path,) = place.metadata("").glob(name)
    good = path.read_bytes()
    for data in (None, b"", b"[" * 10_000, b"{}", b" " * 6_000_000, good + b"\n", good[:-1]):
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(BundleError) as problem:
            place.verify()
        assert "\n" not in str(problem.value)
        path.write_bytes(good)
    path.write_bytes(place.metadata("1.root.json").read_bytes())
    with pytest.raises(BundleError):
        place.verify()


def test_older_releases_are_refused(place, keys, tmp_path):
    _, signers = keys
    old = tmp_path / "old"
    shutil.copytree(place.bundle, old)
    make(place.bundle, FILES, signers[:2])
    place.take()
    with pytest.raises(BundleError, match="must be >="):
        place.verify(bundle=old)


def _at(monkeypatch: pytest.MonkeyPatch, year: int) -> None:
    """The device's clock, for python-tuf and for us."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(year, 1, 1, tzinfo=tz)

    module = SimpleNamespace(datetime=Clock, timezone=timezone)
    monkeypatch.setattr(trusted_metadata_set, "datetime", module)
    monkeypatch.setattr(trusted, "datetime", Clock)


def test_no_clock_makes_an_expired_bundle_fresh(place, keys, tmp_path, monkeypatch):
    _, signers = keys
    stale = tmp_path / "stale"
    make(stale, FILES, signers[:2], place.root, days=-1)
    for year, floor, bundle in (
        (2100, FLOOR, place.bundle),
        (1970, soon(31), place.bundle),
        (2100, FLOOR, stale),
        (1970, soon(0), stale),
    ):
        with monkeypatch.context() as patch:
            _at(patch, year)
            with pytest.raises(BundleError, match="expired"):
                place.verify(bundle=bundle, floor=floor)
    with pytest.raises(BundleError, match="expired"):
        place.verify(bundle=stale)
    _at(monkeypatch, 1970)
    place.verify()  # a clock that was never set stops no fresh bundle


def test_any_beginning_of_a_publication_is_one_to_go_on_from(place, keys, tmp_path, monkeypatch):
    """Killed after each file; then the next run takes the same bundle."""
    _, signers = keys
    place.take()
    before = tmp_path / "before"
    shutil.copytree(place.folder, before)
    make(place.bundle, FILES | {"more": b"1"}, signers[1:])
    wanted = place.verify()
    real = durable.write_bytes
    states = set()
    for kept in range(4):
        shutil.rmtree(place.folder)
        shutil.copytree(before, place.folder)
        left = kept

        def write(path, data):
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            real(path, data)

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(durable, "write_bytes", write)
            publish(place.folder, wanted)
        states.add(tuple(path.read_bytes() for path in sorted(place.folder.iterdir())))
        assert place.take(root=False).files == wanted.files
    assert len(states) == 4


def test_other_contents_are_never_given_whole(place):
    found = place.verify()
    digest = found.targets["base/model"]
    path = place.bundle / trusted.target_name("base/model", digest)
    with open_source(str(place.bundle)) as source:
        for data in (b"", b"m" * 2999, b"m" * 3001, b"n" * 3000):
            path.write_bytes(data)
            given = []
            with pytest.raises(BundleError):
                given += stream_target(source, "base/model", digest)
            assert len(b"".join(given)) < 3000
    assert timedelta(days=29) < found.expires - datetime.now(UTC) <= timedelta(days=30)
