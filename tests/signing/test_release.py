"""What is made of a bundle's folder is what python-tuf's own client takes, and takes no earlier."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.signer import SSlibKey
from tuf.api.exceptions import (
    DownloadHTTPError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, Timestamp

from edge_pslora.errors import BundleError, UsageError, WorkspaceLockedError
from edge_pslora.signing import metadata as form
from edge_pslora.signing import release, roles
from edge_pslora.signing.repository import read_repository
from edge_pslora.workspace.lock import folder_lock
from tests.signing.signing_kit import files_of, keys_in, publish, soon, taken

ONE = {"bundle.json": b"one", "base/model.safetensors": b"m" * 5000, "empty": b""}
TWO = {"bundle.json": b"two", "base/model.safetensors": b"m" * 5000, "adapter/x.bin": b"x"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return keys_in(tmp_path_factory.mktemp("keys") / "k")


@pytest.fixture
def world(keys, tmp_path):
    """Folder of a bundle, signers, bytes of the root, and what a new device takes."""
    made, signers = keys
    root = made.root.read_bytes()
    folder = tmp_path / "bundle"

    def take(*names: str) -> dict[str, bytes | None]:
        return taken(folder, root, list(names or ("bundle.json",)))

    return folder, signers, made, take


def test_a_release_is_taken_and_the_next_takes_its_place(world):
    folder, signers, made, take = world
    standing = publish(folder, ONE, signers[:2], made.root)
    assert (standing.missing, len(standing.signed)) == (0, 2)
    assert take(*ONE) == ONE
    assert publish(folder, TWO, signers[1:]).release > standing.release
    assert take(*TWO, "empty") == {**TWO, "empty": None}
    names = files_of(folder)
    assert {name.rpartition("/")[0] for name in names} == {
        *("metadata", "targets", "targets/base", "targets/adapter")
    }
    assert len(names) == 4 + len(TWO)  # root, timestamp, snapshot, targets: nothing of the first
    assert (folder / "metadata" / "1.root.json").read_bytes() == made.root.read_bytes()


def test_one_signature_is_not_enough_and_devices_keep_what_was_there(world):
    folder, signers, made, take = world
    assert publish(folder, ONE, signers[:1], made.root).missing == 1
    with pytest.raises(DownloadHTTPError):
        take()
    with folder_lock(folder):  # the same key again counts once
        assert release.add_signatures(read_repository(folder), signers[:1]).missing == 1
        assert release.add_signatures(read_repository(folder), signers[1:2]).missing == 0
        before = release.standing(read_repository(folder)).release
    assert take(*ONE) == ONE
    standing = publish(folder, TWO, signers[2:])
    assert (standing.missing, standing.release) == (1, before)
    assert take(*ONE) == ONE
    # a careless copy of what waits is not taken either
    place = folder / "metadata"
    (place / "next.timestamp.json").replace(place / "timestamp.json")
    with pytest.raises(UnsignedMetadataError, match="1/2 keys"):
        take()


def test_signatures_are_added_to_what_is_there_too(world):
    folder, signers, made, take = world
    version = publish(folder, ONE, signers[:2], made.root).release
    before = files_of(folder)
    with folder_lock(folder):
        assert len(release.add_signatures(read_repository(folder), signers).signed) == 3
    after = files_of(folder)
    changed = {name for name in after if after[name] != before[name]}
    names = (f"{version}.targets", f"{version}.snapshot", "timestamp")
    assert changed == {f"metadata/{n}.json" for n in names}
    assert take(*ONE) == ONE


def test_nobody_signs_what_he_has_not_got(world):
    folder, signers, made, _ = world
    publish(folder, ONE, signers[:1], made.root)
    (path,) = (folder / "targets" / "base").iterdir()
    path.write_bytes(b"other")
    with folder_lock(folder), pytest.raises(BundleError, match="other contents"):
        release.add_signatures(read_repository(folder), signers[1:])


def test_expired_is_refused_and_can_be_released_again(world):
    folder, signers, made, take = world
    first = publish(folder, ONE, signers[:2], made.root, days=-1)
    with pytest.raises(ExpiredMetadataError):
        take()
    with folder_lock(folder):
        until = soon(5)
        standing = release.renew(read_repository(folder), until, signers[:2])
    assert standing.release > first.release
    assert standing.expires == until
    assert take(*ONE) == ONE


def test_versions_grow_from_folder_to_folder_and_when_the_clock_goes_back(world, tmp_path):
    """A device that took one bundle takes a later one whose folder was begun anew."""
    folder, signers, made, _ = world
    times = [datetime(year, 1, 1, tzinfo=UTC) for year in (2026, 2027, 1970, 2028)]
    places = (folder, folder, folder, tmp_path / "new")
    found = [
        publish(place, ONE, signers[:2], made.root, now=now).release
        for place, now in zip(places, times, strict=True)
    ]
    seconds = [int(now.timestamp()) for now in times]
    assert found == [seconds[0], seconds[1], seconds[1] + 1, seconds[3]]


def test_a_damaged_payload_is_no_payload(world):
    folder, signers, made, take = world
    publish(folder, ONE, signers[:2], made.root)
    (path,) = (folder / "targets" / "base").iterdir()
    path.write_bytes(b"m" * 4999 + b"n")
    with pytest.raises(LengthOrHashMismatchError):
        take("base/model.safetensors")


def test_after_a_rotation_the_old_key_signs_nothing(world, tmp_path):
    folder, signers, made, take = world
    _, (fourth,) = keys_in(tmp_path / "new", 1, 1)
    publish(folder, ONE, signers[:2], made.root)

    def rotate(*by) -> release.Standing:
        with folder_lock(folder):
            return release.rotate(
                read_repository(folder),
                remove=[made.ids[1]],
                add=[fourth.public_key],
                expires=soon(365),
                signers=by,
            )

    # key 2 and the new one: one of the old threshold, one of the new
    standing = rotate(signers[1], fourth)
    assert (standing.root, standing.missing) == (1, 1)
    assert take(*ONE) == ONE
    assert rotate(signers[0], signers[2]).root == 2
    assert take(*ONE) == ONE  # a device that knows the first root alone
    assert not (folder / "metadata" / "next.root.json").exists()
    with pytest.raises(UsageError, match=f"found key {made.ids[1][:12]}"):
        publish(folder, TWO, [signers[1], signers[0]])
    # whatever was signed with the key that is gone is not enough
    publish(folder, TWO, signers[:1])
    version = read_repository(folder).draft.version
    for name in ("next.timestamp", f"{version}.snapshot", f"{version}.targets"):
        path = folder / "metadata" / f"{name}.json"
        found: Metadata = Metadata.from_bytes(path.read_bytes())
        found.sign(signers[1], append=True)
        path.write_bytes(found.to_bytes())
    with folder_lock(folder):
        assert release.add_signatures(read_repository(folder), signers[:1]).missing == 1
    assert take(*ONE) == ONE
    assert publish(folder, TWO, [signers[0], fourth]).missing == 0
    assert take(*TWO) == TWO


def test_a_release_that_loses_its_signers_stops_the_new_root(world, tmp_path):
    """Two of three keys go: the root waits until the new holders signed what devices take."""
    folder, signers, made, take = world
    _, others = keys_in(tmp_path / "new", 2, 1)
    publish(folder, ONE, signers[:2], made.root)
    with folder_lock(folder):
        standing = release.rotate(
            read_repository(folder),
            remove=made.ids[:2],
            add=[other.public_key for other in others],
            expires=soon(),
            signers=[*signers[:2], others[0]],
        )
        assert (standing.root, standing.missing) == (1, 1)
        assert taken(folder, made.root.read_bytes(), ["empty"]) == {"empty": b""}
        assert release.add_signatures(read_repository(folder), [others[1]]).root == 2
    assert take(*ONE) == ONE


@pytest.mark.parametrize(
    "change", [{"remove": ["0" * 64]}, {"threshold": 5}, {"add": "known"}, {"remove": "two"}]
)
def test_impossible_rotations_change_nothing(change, world):
    folder, signers, made, _ = world
    publish(folder, ONE, signers[:2], made.root)
    before = files_of(folder)
    arguments = {"remove": (), "add": (), **change}
    if arguments["add"] == "known":
        arguments["add"] = [signers[0].public_key]
    if arguments["remove"] == "two":
        arguments["remove"] = made.ids[:2]
    with folder_lock(folder), pytest.raises(UsageError):
        release.rotate(read_repository(folder), expires=soon(), signers=signers, **arguments)
    assert files_of(folder) == before


def test_a_key_under_two_names_is_no_root(keys):
    """python-tuf counts names; two names of one key would make one signature two."""
    made, signers = keys
    for change in ({}, {"public": signers[0].public_key.keyval["public"].upper()}):
        twin = SSlibKey("0" * 64, "ed25519", "ed25519", {**signers[0].public_key.keyval, **change})
        root = roles.new_root([signers[0].public_key, twin], 2, soon())
        forged = Metadata(root)
        forged.sign(signers[0])
        forged.signatures["0" * 64] = forged.signatures[made.ids[0]].__class__(
            "0" * 64, forged.signatures[made.ids[0]].signature
        )
        root.verify_delegate("root", forged.signed_bytes, forged.signatures)  # it is content
        with pytest.raises(BundleError, match="under their own ids"):
            roles.check_root(forged, "root.json")


@given(data=st.data())
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_byte_of_metadata_has_another_form(data, keys):
    """Whatever bit is turned, the file is either no metadata or its signatures are wrong."""
    made, _ = keys
    content = made.root.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8

    def read(found: bytes) -> None:
        root = form.parse(found, Root, "root.json")
        previous = form.parse(content, Root, "root.json").signed
        roles.require_signed(roles.check_root(root, "root.json"), root, "root.json")
        strangers = root.signatures.keys() - previous.keys.keys()
        if strangers:
            raise BundleError("root.json", expected="", found="", remedy="")

    read(content)
    with pytest.raises(BundleError):
        read(bytes(changed))


def test_forms_that_python_tuf_takes_are_refused(keys):
    made, _ = keys
    content = made.root.read_bytes()
    parsed = json.loads(content)
    capital = content.replace(
        (signature := parsed["signatures"][0]["sig"]).encode(), signature.upper().encode()
    )
    others = [capital, content + b"\n", json.dumps(parsed).encode(), content[:-1] + b',"x":1}']
    others.append(content.replace(b'{"signatures"', b'{"signatures":[],"signatures"'))
    for other in others:
        found: Metadata[Root] = Metadata.from_bytes(other)
        found.signed.verify_delegate("root", found.signed_bytes, found.signatures)
        with pytest.raises(BundleError):
            form.parse(other, Root, "root.json")
    for other in (b"", b"[]", b"null", b"\xff", b"[" * 100_000, content.replace(b"root", b"rott")):
        with pytest.raises(BundleError):
            form.parse(other, Root, "root.json")
    with pytest.raises(BundleError, match="of kind root"):
        form.parse(content, Timestamp, "timestamp.json")


def test_other_peoples_folders_and_roots_are_left_alone(world, tmp_path):
    folder, signers, made, _ = world
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        publish(folder, ONE, signers[:2], made.root)
    (folder / "thesis.tex").unlink()
    with pytest.raises(UsageError, match="--root FILE"):
        publish(folder, ONE, signers[:2])
    publish(folder, ONE, signers[:2], made.root)
    (folder / ".DS_Store").write_text("what a file manager leaves in a bundle")
    other, strangers = keys_in(tmp_path / "other")
    before = files_of(folder)
    with pytest.raises(UsageError, match="another one of version 1"):
        publish(folder, TWO, signers[:2], other.root)
    with pytest.raises(UsageError, match="expected a key of"):
        publish(folder, TWO, strangers[:2])
    assert {n: c for n, c in files_of(folder).items() if n in before} == before
    publish(folder, TWO, signers[:2], made.root)  # the same root again
    with folder_lock(folder), pytest.raises(WorkspaceLockedError), folder_lock(folder):
        pass


def test_roots_are_taken_over_from_another_bundle(world, tmp_path):
    folder, signers, made, _ = world
    publish(folder, ONE, signers[:2], made.root)
    with folder_lock(folder):
        release.rotate(
            read_repository(folder),
            remove=[made.ids[2]],
            add=(),
            expires=soon(),
            signers=signers[:2],
        )
    other = tmp_path / "other"
    publish(other, TWO, signers[:2], folder)
    assert [root.signed.version for root in read_repository(other).roots] == [1, 2]
    assert taken(other, made.root.read_bytes(), list(TWO)) == TWO


def driven(made, place: Path, *fault: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.signing.bundle_driver", str(made.folder), str(place)]
    done = subprocess.run(
        [*command, *fault],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


@pytest.fixture
def scratch(tmp_path):
    """In memory where that is possible: hundreds of releases wait for thousands of fsyncs."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as place:
        yield Path(place) / "k"


def test_killed_at_every_step(keys, scratch):
    """After each kill a new device takes the old release or the new one, whole; run again, the new."""
    facts = driven(keys[0], scratch)
    assert facts["bad"] == []
    assert facts["calls"] > 80
    assert min(facts["old"], facts["new"]) > 20


def test_a_writer_in_the_wrong_order_is_seen(keys, scratch):
    """The driver's own check: a timestamp that comes before what it names."""
    assert driven(keys[0], scratch, "backwards")["bad"] != []
