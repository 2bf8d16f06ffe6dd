"""What `edge-pslora status` says of signed updates: read-only, and of damaged files too.

The trusted metadata were checked before they were written (edge_pslora.signing.trusted); here they are
read as JSON, so that a device's status needs no library for signatures.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_pslora.errors import WorkspaceError
from edge_pslora.workspace import layout, strict_json
from edge_pslora.workspace.update_state import read_state

_FILES = ("root.json", "timestamp.json", "snapshot.json", "targets.json")
_LARGEST = 5_000_000
_TIME = "%Y-%m-%dT%H:%M:%SZ"


def describe_updates(workspace: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The state of signed updates as JSON values, and one line for each damaged file.

    Returns:
        None where no update was ever taken; else device_class, counter, failed_counter, clock_floor,
        trial (generation, previous, counter, attempts, going_back; or None), root_version, expires
        (when the first of the trusted metadata does). A value that cannot be read is None.
    """
    folder = workspace / layout.UPDATES
    if not folder.exists():
        return None, []
    facts: dict[str, Any] = dict.fromkeys(
        ("device_class", "counter", "failed_counter", "clock_floor", "trial")
    )
    facts |= {"root_version": None, "expires": None}
    damage = []
    try:
        state = read_state(workspace)
    except WorkspaceError as problem:
        damage.append(str(problem))
    else:
        if state is not None:
            facts |= asdict(state) | {"clock_floor": state.clock_floor.strftime(_TIME)}
    expires = []
    for name in _FILES:
        path = folder / layout.TRUSTED / name
        if not path.exists():
            continue
        try:
            version, until = _signed(path)
        except WorkspaceError as problem:
            damage.append(str(problem))
            continue
        expires.append(until)
        if name == _FILES[0]:
            facts["root_version"] = version
    facts["expires"] = min(expires, default=None)
    return facts, damage


def _signed(path: Path) -> tuple[int, str]:
    """Version and expiry (UTC, ISO 8601: their order is that of time) of a metadata file."""
    signed = strict_json.read(path, limit=_LARGEST).get("signed")
    version = signed.get("version") if isinstance(signed, dict) else None
    expires = signed.get("expires") if isinstance(signed, dict) else None
    if type(version) is not int or not isinstance(expires, str):
        raise WorkspaceError(
            str(path),
            expected="signed metadata",
            found="others",
            remedy=f"remove the folder {layout.UPDATES}/{layout.TRUSTED} and give --root again",
        )
    return version, expires
