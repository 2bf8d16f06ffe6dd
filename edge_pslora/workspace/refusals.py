"""What is remembered of sessions that the gate refused, until a generation's manifest remembers it.

refusals.json lies in staging/refused/ beside the last refused generation. The next run takes the records
along in its scratch folder: into the next refused folder, or into the manifest's metrics
(`refused_before`) of the generation that it publishes. They are for the report alone: where one cannot
be read or, on a full disk, carried over, the run goes on without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from edge_pslora.errors import EdgePsloraError, WorkspaceError
from edge_pslora.workspace import durable, strict_json

REFUSALS = "refusals.json"
MOST = 50  # the newest; a device that is refused for ever must not fill its disk with it
_KEPT = (
    *("task", "created", "parent", "metric", "samples", "reason", "accuracy_before"),
    *("accuracy_after", "anchor_before", "anchor_after", "retention"),
)

Record = dict[str, Any]


def record_of(
    metrics: Mapping[str, Any], *, task: str, created: str, parent: int | None, reason: str
) -> Record:
    """One refused session, as JSON values. metrics: of the session, as far as it got."""
    facts = {"task": task, "created": created, "parent": parent, "reason": reason}
    return {name: value for name, value in ({**metrics, **facts}).items() if name in _KEPT}


def read(folder: Path) -> list[Record]:
    """The records in a folder, oldest first; none where there are none, or none to trust."""
    path = folder / REFUSALS
    if not path.exists():
        return []
    try:
        found = strict_json.read(path).get("sessions")
    except WorkspaceError:
        return []
    return [r for r in found if isinstance(r, dict)] if isinstance(found, list) else []


def write(folder: Path, records: Sequence[Record]) -> None:
    """Durably; the oldest of very many are left out."""
    content = {"sessions": list(records)[-MOST:]}
    durable.write_bytes(folder / REFUSALS, strict_json.canonical(content))


def set_aside(staging: Path, refused: Path) -> list[Record]:
    """Before staging is emptied: the records, which lie in staging/ itself until `keep` has them."""
    if not (staging / REFUSALS).exists() and (records := read(refused)):
        with suppress(EdgePsloraError):  # a full disk: emptying staging is what makes room
            write(staging, records)
    return read(staging)


def keep(scratch: Path, records: Sequence[Record]) -> None:
    """Once staging is empty: the records go along with the run."""
    if records:
        write(scratch, records)


def dropped(staging: Path) -> None:
    """Once run.json is there: the scratch folder has the records."""
    if (staging / REFUSALS).exists():
        durable.remove_file(staging / REFUSALS)
