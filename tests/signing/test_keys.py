"""Key files: who may read them, what is refused, and that there are never half of them."""

from __future__ import annotations

import os
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from tuf.api.metadata import TOP_LEVEL_ROLE_NAMES

from edge_pslora.errors import EdgePsloraError, InputError, UsageError
from edge_pslora.signing.keys import load_public, load_signers, make_keys, read_passphrase
from edge_pslora.signing.repository import read_root
from tests.signing.signing_kit import keys_in, soon


def mode(path) -> int:
    return path.stat().st_mode & 0o777


def test_keys_are_their_holders_alone_and_the_root_trusts_them(tmp_path):
    old = os.umask(0)
    try:
        made, signers = keys_in(tmp_path / "k", count=4, threshold=3)
    finally:
        os.umask(old)
    assert [mode(path) for path in made.files] == [0o600] * 4
    assert mode(made.folder) == 0o700
    assert [path.name for path in made.files] == [f"key-{n}.pem" for n in (1, 2, 3, 4)]
    root = read_root(made.root)
    assert len(root.signatures) == 4
    for name in TOP_LEVEL_ROLE_NAMES:
        role = root.signed.roles[name]
        assert (sorted(role.keyids), role.threshold) == (sorted(made.ids), 3)
    for path, key_id, signer in zip(made.files, made.ids, signers, strict=True):
        assert load_public(path.with_suffix(".pub")).keyid == key_id == signer.public_key.keyid
        assert b"PRIVATE" not in path.with_suffix(".pub").read_bytes()


def test_a_passphrase_encrypts_the_private_files(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes("schlüssel wort\n".encode())
    made = make_keys(tmp_path / "k", 2, 1, soon(), read_passphrase(secret))
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in made.files[0].read_bytes()
    assert load_signers(made.files, read_passphrase(secret))[1].public_key.keyid == made.ids[1]
    with pytest.raises(UsageError, match="--passphrase-file"):
        load_signers(made.files)
    with pytest.raises(InputError, match="another passphrase"):
        load_signers(made.files, b"other")
    plain, _ = keys_in(tmp_path / "plain")
    mixed = [made.files[0], plain.files[0]]  # one passphrase for those that need it
    assert len(load_signers(mixed, read_passphrase(secret))) == 2


@pytest.mark.parametrize("content", [b"", b"\n", b"one\ntwo\n", b"x" * 2000])
def test_a_passphrase_is_one_line(content, tmp_path):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(InputError, match="the passphrase"):
        read_passphrase(tmp_path / "f")


def test_keys_are_never_written_over(tmp_path):
    made, _ = keys_in(tmp_path / "k")
    before = made.files[0].read_bytes()
    with pytest.raises(UsageError, match="never written over"):
        keys_in(tmp_path / "k")
    assert made.files[0].read_bytes() == before
    (tmp_path / "empty").mkdir()
    assert keys_in(tmp_path / "empty")[0].root.is_file()


@pytest.mark.parametrize("threshold", [0, 4])
def test_a_threshold_beyond_the_keys_is_refused(threshold, tmp_path):
    with pytest.raises(UsageError, match="threshold"):
        keys_in(tmp_path / "k", threshold=threshold)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_leaves_no_keys(tmp_path, monkeypatch):
    real, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(EdgePsloraError, match="No space left"):
        keys_in(tmp_path / "k")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_key_is_refused_in_one_line(tmp_path):
    made, _ = keys_in(tmp_path / "k")
    path = tmp_path / "key.pem"
    other = ec.generate_private_key(ec.SECP256R1())
    foreign = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    good = made.files[0].read_bytes()
    bad = [b"", b"\0" * 99, good[:60], good.replace(b"PRIVATE", b"PUBLIC"), foreign, public]
    for content in bad:
        path.write_bytes(content)
        for load in (lambda: load_signers([path]), lambda: load_public(path)):
            with pytest.raises(InputError, match="Ed25519 key in PEM") as caught:
                load()
            assert "\n" not in str(caught.value)
    path.write_bytes(b"x" * (1 << 17))
    with pytest.raises(InputError, match="at most"):
        load_signers([path])
    with pytest.raises(InputError, match="key in PEM"):
        load_public(made.files[0])  # the private one, by mistake
    with pytest.raises(UsageError, match="a key counts once"):
        load_signers([made.files[0], made.files[0]])


def test_openssl_reads_them_too(tmp_path):
    made, _ = keys_in(tmp_path / "k")
    command = ["openssl", "pkey", "-in", str(made.files[0]), "-pubout"]
    try:
        done = subprocess.run(command, capture_output=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("no openssl that knows Ed25519")
    assert done.stdout == made.files[0].with_suffix(".pub").read_bytes()
