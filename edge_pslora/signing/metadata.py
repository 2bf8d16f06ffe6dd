"""TUF metadata as bytes: one form for one content, so that no byte of a file can change unnoticed.

python-tuf decides what a signature is worth; it reads JSON in any form, signatures in capital letters,
and leaves signatures alone that do not count. Here such a file is damaged: it is not what was written.
"""

from __future__ import annotations

import re
from typing import TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from edge_pslora.errors import BundleError

Content = TypeVar("Content", Root, Timestamp, Snapshot, Targets)

METADATA, TARGETS = "metadata", "targets"  # the folders of a bundle
TIMESTAMP_FILE = "timestamp.json"
# bytes; python-tuf's own limits, but for timestamps, which are small
MAX_ROOT, MAX_TIMESTAMP, MAX_SNAPSHOT, MAX_TARGETS = 512_000, 16_384, 2_000_000, 5_000_000
_SIGNATURE = re.compile(r"[0-9a-f]{128}")  # of Ed25519
_KEY_ID = re.compile(r"[0-9a-f]{64}")
_REMEDY = "get the bundle again, or tell who made it"


def parse(data: bytes, kind: type[Content], where: str) -> Metadata[Content]:
    """The metadata in `data`; nothing is said of its signatures but that they are well-formed.

    Raises:
        BundleError: not such metadata, or in another form than encode gives.
    """
    try:
        found = Metadata[Content].from_bytes(data)
        same = encode(found) == data
    except (RepositoryError, UnicodeError) as problem:
        raise _refused(where, str(problem.__cause__ or problem)) from problem
    if type(found.signed) is not kind:
        raise _refused(where, f"metadata of kind {found.signed.type}")
    if not same:
        raise _refused(where, "other bytes than edge-pslora or python-tuf write for its content")
    for key_id, signature in found.signatures.items():
        formed = _KEY_ID.fullmatch(key_id) and _SIGNATURE.fullmatch(signature.signature)
        if formed is None or signature.unrecognized_fields:
            raise _refused(where, f"a malformed signature of key {key_id[:12]!a}")
    if found.unrecognized_fields:
        raise _refused(where, f"fields that nobody signed: {sorted(found.unrecognized_fields)}")
    return found


def encode(metadata: Metadata[Content]) -> bytes:
    """The bytes of a file with this content."""
    return metadata.to_bytes()


def root_name(version: int) -> str:
    return f"{version}.root.json"


def snapshot_name(version: int) -> str:
    return f"{version}.snapshot.json"


def targets_name(version: int) -> str:
    return f"{version}.targets.json"


def _refused(where: str, found: str) -> BundleError:
    return BundleError(where, expected="signed metadata of a bundle", found=found, remedy=_REMEDY)
