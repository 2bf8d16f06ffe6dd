"""Who may sign: the same keys, with the same threshold, for all four roles of TUF.

So one stolen key signs nothing that a device takes, whichever file it is used on. root: who may sign;
targets: what is shipped; snapshot and timestamp: that this is the newest, until when.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.signer import Key, SSlibKey
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import TOP_LEVEL_ROLE_NAMES, Metadata, Role, Root

from edge_pslora.errors import BundleError, UsageError
from edge_pslora.signing import metadata as form

_PUBLIC = re.compile(r"[0-9a-f]{64}")
_MOST_KEYS = 32


def new_root(keys: Sequence[Key], threshold: int, expires: datetime, version: int = 1) -> Root:
    """A root that trusts `keys`, of which `threshold` have to sign.

    Raises:
        UsageError: a key twice, or fewer keys than the threshold.
    """
    known = {key.keyid: key for key in keys}
    _require(len(known) == len(keys), "keys", "every key once", "the same key twice")
    _require(len(keys) <= _MOST_KEYS, "keys", f"at most {_MOST_KEYS} keys", f"{len(keys)}")
    _require(
        1 <= threshold <= len(keys),
        "--threshold",
        f"a threshold from 1 to {len(keys)}, the number of keys",
        f"{threshold}",
    )
    ids = sorted(known)
    roles = {name: Role(list(ids), threshold) for name in sorted(TOP_LEVEL_ROLE_NAMES)}
    return Root(version, expires=expires, keys=known, roles=roles, consistent_snapshot=True)


def next_root(
    root: Root,
    remove: Collection[str],
    add: Sequence[Key],
    expires: datetime,
    threshold: int | None,
) -> Root:
    """The root after `root`, without the keys `remove` (their ids) and with those of `add`.

    Raises:
        UsageError: as new_root, or a key to remove is not there, or one to add is there already.
    """
    for key_id in remove:
        _require(key_id in root.keys, "--remove", "a key of the bundle", f"{key_id[:12]}")
    for key in add:
        _require(key.keyid not in root.keys, "--add", "a new key", f"{key.keyid[:12]}, in use")
    kept = [key for key_id, key in root.keys.items() if key_id not in remove]
    wanted = threshold_of(root) if threshold is None else threshold
    return new_root([*kept, *add], wanted, expires, root.version + 1)


def check_root(found: Metadata[Root], where: str) -> Root:
    """What python-tuf leaves to others: that no key can be counted twice under two names.

    Raises:
        BundleError: not Ed25519 keys under their own ids, other keys or another threshold for one of
            the roles, or no consistent snapshots.
    """
    root = found.signed
    for key_id, key in root.keys.items():
        _check(_is_proper(key_id, key), where, "Ed25519 keys under their own ids", key_id)
    ids, threshold = sorted(root.keys), threshold_of(root)
    for name, role in root.roles.items():
        same = sorted(role.keyids) == ids and role.threshold == threshold
        _check(same, where, "the same keys and threshold for every role", name)
    _check(
        1 <= threshold <= len(ids) <= _MOST_KEYS, where, "a threshold within the keys", threshold
    )
    _check(root.consistent_snapshot is True, where, "consistent snapshots", False)
    return root


def check_next_root(previous: Root, found: Metadata[Root], where: str) -> Root:
    """The root that may follow `previous`: enough keys of both signed it, and nobody else.

    Raises:
        BundleError: as check_root and require_signed, another version, or a stranger's signature.
    """
    root = check_root(found, where)
    _check(
        root.version == previous.version + 1, where, f"version {previous.version + 1}", root.version
    )
    require_signed(previous, found, where)
    require_signed(root, found, where)
    strangers = found.signatures.keys() - previous.keys.keys() - root.keys.keys()
    _check(not strangers, where, "signatures of the old and the new keys alone", sorted(strangers))
    return root


def threshold_of(root: Root) -> int:
    return root.roles[Root.type].threshold


def signers_of(root: Root, found: Metadata[form.Content]) -> tuple[str, ...]:
    """Ids of the keys of `root` whose signature on `found` is right, sorted; each key once."""
    try:
        result = root.get_verification_result(
            found.signed.type, found.signed_bytes, found.signatures
        )
    except (RepositoryError, ValueError):
        return ()
    return tuple(sorted(result.signed))


def is_signed(root: Root, found: Metadata[form.Content]) -> bool:
    """Whether enough keys of `root` signed `found`."""
    return len(signers_of(root, found)) >= threshold_of(root)


def require_signed(root: Root, found: Metadata[form.Content], where: str) -> None:
    """Enough keys of `root` signed `found`, and no signature of its keys is wrong.

    Raises:
        BundleError: too few, or a damaged signature.
    """
    right, threshold = signers_of(root, found), threshold_of(root)
    wrong = [key_id for key_id in found.signatures if key_id in root.keys and key_id not in right]
    if wrong or len(right) < threshold:
        damaged = f", a wrong one of key {wrong[0][:12]}" if wrong else ""
        raise BundleError(
            where,
            expected=f"signatures of {threshold} of {len(root.keys)} keys (root version {root.version})",
            found=f"{len(right)}{damaged}",
            remedy="get the bundle again; whoever made it adds one with: edge-pslora keys sign",
        )


def find_key(root: Root, text: str) -> str:
    """The id of the key of `root` that begins with `text`, at least 8 characters.

    Raises:
        UsageError: none, or several.
    """
    found = [key_id for key_id in root.keys if len(text) >= 8 and key_id.startswith(text)]
    if len(found) != 1:
        known = ", ".join(sorted(key_id[:12] for key_id in root.keys))
        raise UsageError(
            "--remove",
            expected="the id of a key or its .pub file",
            found=ascii(text)[:80],
            remedy=f"the bundle's keys: {known}",
        )
    return found[0]


def _is_proper(key_id: str, key: Key) -> bool:
    """Under the id that its content gives, in the one way of writing it."""
    if not isinstance(key, SSlibKey) or (key.keytype, key.scheme) != ("ed25519", "ed25519"):
        return False
    public = key.keyval.get("public")
    if key.keyval.keys() != {"public"} or key.unrecognized_fields or not isinstance(public, str):
        return False
    if _PUBLIC.fullmatch(public) is None:
        return False
    same = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
    return key_id == SSlibKey.from_crypto(same).keyid


def _check(condition: bool, where: str, expected: str, found: object) -> None:
    if not condition:
        raise BundleError(
            where,
            expected=expected,
            found=ascii(found)[:80],
            remedy="get root.json from whoever signs the bundles",
        )


def _require(condition: bool, where: str, expected: str, found: str) -> None:
    if not condition:
        raise UsageError(where, expected=expected, found=found, remedy="change the arguments")
