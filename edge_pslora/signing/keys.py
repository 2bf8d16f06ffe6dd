"""Keys that sign updates: Ed25519, a private PEM file each (mode 0600), its public part beside it.

Both are the forms of openssl and of others' vaults: PKCS#8, encrypted when a passphrase is given, and
SubjectPublicKeyInfo. A public part in TUF's JSON would name its own id; from PEM the id is computed,
so that a key cannot come back under a second name and be counted twice.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import Metadata

from edge_pslora.errors import InputError, UsageError
from edge_pslora.signing import metadata as form
from edge_pslora.signing import roles
from edge_pslora.workspace import durable
from edge_pslora.workspace.reading import read_limited

ROOT_FILE = "root.json"
_PRIVATE = 0o600
_MAX_FILE = 1 << 16
_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


@dataclass(frozen=True)
class NewKeys:
    """What make_keys wrote: the private files and, in the same order, the ids of their keys."""

    folder: Path
    files: tuple[Path, ...]
    ids: tuple[str, ...]
    threshold: int
    expires: datetime

    @property
    def root(self) -> Path:
        return self.folder / ROOT_FILE


def make_keys(
    folder: Path, count: int, threshold: int, expires: datetime, passphrase: bytes | None = None
) -> NewKeys:
    """A new folder with key-1.pem, key-1.pub, ... and a root.json that trusts them, signed by all.

    It gets its name in one step, when all is on the disk: there are never keys without their root.

    Args:
        folder: a new or empty folder.
        passphrase: encrypts the private files.

    Raises:
        UsageError: the folder is in use, or the threshold does not fit.
    """
    folder = folder.absolute()
    if folder.is_symlink() or (folder.exists() and not _is_empty(folder)):
        raise UsageError(
            str(folder),
            expected="a new or empty folder",
            found="something there already",
            remedy="choose another: keys are never written over",
        )
    private = [Ed25519PrivateKey.generate() for _ in range(count)]
    signers = [CryptoSigner(key) for key in private]
    root = Metadata(roles.new_root([s.public_key for s in signers], threshold, expires))
    for signer in signers:
        root.sign(signer, append=True)
    staged = folder.with_name(f".{folder.name}.edge-pslora-new")
    with durable.storage_errors(folder.parent, folder.name):
        shutil.rmtree(staged, ignore_errors=True)  # of a killed run
        staged.mkdir(mode=0o700)
        try:
            for number, key in enumerate(private, start=1):
                path = staged / f"key-{number}.pem"
                durable.write_bytes(path, _private_pem(key, passphrase), mode=_PRIVATE)
                durable.write_bytes(path.with_suffix(".pub"), _public_pem(key.public_key()))
            durable.write_bytes(staged / ROOT_FILE, form.encode(root))
            if folder.exists():
                folder.rmdir()
            durable.publish_folder(staged, folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    files = tuple(folder / f"key-{number}.pem" for number in range(1, count + 1))
    ids = tuple(signer.public_key.keyid for signer in signers)
    return NewKeys(folder, files, ids, threshold, expires)


def load_signers(paths: Sequence[Path], passphrase: bytes | None = None) -> list[CryptoSigner]:
    """Keys to sign with. passphrase: of those files that are encrypted.

    Raises:
        InputError: a file that is no Ed25519 key, or another passphrase.
        UsageError: an encrypted file and no passphrase, or one key twice.
    """
    signers = [_load_signer(path, passphrase) for path in paths]
    if len({signer.public_key.keyid for signer in signers}) != len(signers):
        raise UsageError(
            "--key",
            expected="every key once",
            found="the same key twice",
            remedy="a key counts once, however often it signs: give another",
        )
    return signers


def load_public(path: Path) -> SSlibKey:
    """The key of a .pub file.

    Raises:
        InputError: not a public Ed25519 key in PEM.
    """
    data = read_limited(path, _MAX_FILE, error=InputError)
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as problem:
        raise _no_key(path, "public", str(problem)) from problem
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path, "public", f"a key of kind {type(key).__name__}")
    return SSlibKey.from_crypto(key)


def read_passphrase(path: Path) -> bytes:
    """The first line of a file.

    Raises:
        InputError: it has none, or more than one line.
    """
    data = read_limited(path, _MAX_FILE, error=InputError)
    lines = data.splitlines()
    if len(lines) != 1 or not lines[0] or len(lines[0]) > 1023:
        raise InputError(
            str(path),
            expected="one line, the passphrase, of at most 1023 bytes",
            found=f"{len(lines)} lines, {len(data)} bytes",
            remedy="write the passphrase alone into the file",
        )
    return lines[0]


def _load_signer(path: Path, passphrase: bytes | None) -> CryptoSigner:
    data = read_limited(path, _MAX_FILE, error=InputError)
    encrypted = _ENCRYPTED in data
    if encrypted and passphrase is None:
        raise UsageError(
            str(path),
            expected="its passphrase",
            found="an encrypted key and no passphrase",
            remedy="give it in a file: --passphrase-file FILE",
        )
    try:
        key = load_pem_private_key(data, passphrase if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as problem:
        found = "another passphrase, or a damaged file" if encrypted else str(problem)
        raise _no_key(path, "private", found) from problem
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "private", f"a key of kind {type(key).__name__}")
    return CryptoSigner(key)


def _private_pem(key: Ed25519PrivateKey, passphrase: bytes | None) -> bytes:
    encryption: KeySerializationEncryption = NoEncryption()
    if passphrase is not None:
        encryption = BestAvailableEncryption(passphrase)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def _public_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _no_key(path: Path, kind: str, found: str) -> InputError:
    return InputError(
        str(path),
        expected=f"a {kind} Ed25519 key in PEM",
        found=found or "something else",
        remedy="make keys with: edge-pslora keys init DIR",
    )
