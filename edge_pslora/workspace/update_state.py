"""updates/state.json: how far this device got with signed updates. One file, replaced in one step.

The order of an update: generation published, then this file (the trial is noted), then the pointer.
Whoever finds a trial whose generation is not current knows that the pointer is still to be moved: to
the trial's generation, or, once `going_back`, to the one before. So every kill has one way on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge_pslora.errors import WorkspaceError, WorkspaceLockedError
from edge_pslora.workspace import layout, strict_json
from edge_pslora.workspace.durable import make_folder, write_bytes

FORMAT_VERSION = 1
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class Trial:
    """A generation that serves but is not yet known to be healthy.

    previous: the generation to go back to, None when there was none. attempts: health checks that
    were begun, each counted before it starts, so that one that takes the device down counts too.
    """

    generation: int
    previous: int | None
    counter: int
    attempts: int = 0
    going_back: bool = False


@dataclass(frozen=True)
class UpdateState:
    """device_class: set once. counter: the largest of any bundle taken, whatever was rolled back.

    failed_counter: the largest of a bundle that was not good enough here (the gate's anchors, the
    health checks, or a rollback while it was on trial), 0 if none; it is not tried again.
    clock_floor: no clock is believed to be earlier. trial: None when nothing is on trial.
    """

    device_class: str
    counter: int = 0
    failed_counter: int = 0
    clock_floor: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    trial: Trial | None = None


def read_state(workspace: Path) -> UpdateState | None:
    """None: this workspace never took a signed update.

    Raises:
        WorkspaceError: the file is damaged.
    """
    path = _path(workspace)
    if not path.exists() and not path.is_symlink():
        return None
    content = strict_json.read(path)
    fields = {"format_version", *UpdateState.__dataclass_fields__}
    _check(content.keys() == fields, path, f"the fields {sorted(fields)}", sorted(content))
    _check(content["format_version"] == FORMAT_VERSION, path, "format version 1", content)
    for name in ("counter", "failed_counter"):
        _check(_count(content[name]), path, f"a number in {name}", content[name])
    _check(isinstance(content["device_class"], str), path, "a device class", content)
    try:
        floor = datetime.strptime(content["clock_floor"], _TIME).replace(tzinfo=UTC)
    except (TypeError, ValueError) as problem:
        raise _damaged(path, "a UTC time in clock_floor", content["clock_floor"]) from problem
    # an earlier year would not be written with four digits
    _check(floor.year >= 2000, path, "a clock_floor of this century", content["clock_floor"])
    return UpdateState(
        device_class=content["device_class"],
        counter=content["counter"],
        failed_counter=content["failed_counter"],
        clock_floor=floor,
        trial=None if content["trial"] is None else _trial(content["trial"], path),
    )


def replace_state(workspace: Path, state: UpdateState) -> None:
    """Durably; the folder is made when missing."""
    make_folder(workspace / layout.UPDATES)
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        **asdict(state),
        "clock_floor": state.clock_floor.strftime(_TIME),
    }
    write_bytes(_path(workspace), strict_json.canonical(content))


def known_state(workspace: Path) -> UpdateState | None:
    """As read_state; a damaged file is as none, for what has to work in spite of it."""
    try:
        return read_state(workspace)
    except WorkspaceError:
        return None


def going_back(state: UpdateState, to: int | None) -> UpdateState:
    """The trial of `state` has failed: the pointer is to go to `to` (None: to nothing)."""
    trial = state.trial
    if trial is None:
        return state
    failed = max(state.failed_counter, trial.counter)
    back = replace(trial, previous=to, going_back=True)
    return replace(state, failed_counter=failed, trial=back)


def require_no_trial(workspace: Path) -> None:
    """For whoever would move the pointer himself; the caller holds the writer's lock.

    Raises:
        WorkspaceLockedError: an update is on trial: as with another writer, the way is to wait until
            it has ended and run the same command again.
        WorkspaceError: the file is damaged.
    """
    state = read_state(workspace)
    if state is not None and state.trial is not None:
        raise WorkspaceLockedError(
            str(workspace),
            expected="no update on trial",
            found=f"generation {state.trial.generation}, of the bundle with counter "
            f"{state.trial.counter}",
            remedy=f"end its trial (edge-pslora apply {workspace} --health-check COMMAND, or edge-pslora "
            "rollback), then run the same command again",
        )


def _path(workspace: Path) -> Path:
    return workspace / layout.UPDATES / layout.UPDATE_STATE


def _trial(content: Any, path: Path) -> Trial:
    fields = set(Trial.__dataclass_fields__)
    _check(isinstance(content, dict) and content.keys() == fields, path, "a trial", content)
    previous = content["previous"]
    numbers = [content["generation"], content["counter"], content["attempts"]]
    _check(all(map(_count, numbers)), path, "numbers in trial", content)
    _check(previous is None or _count(previous), path, "a number in previous", previous)
    _check(type(content["going_back"]) is bool, path, "true or false in going_back", content)
    return Trial(**content)


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _check(condition: bool, path: Path, expected: str, found: Any) -> None:
    if not condition:
        raise _damaged(path, expected, found)


def _damaged(path: Path, expected: str, found: Any) -> WorkspaceError:
    return WorkspaceError(
        str(path),
        expected=expected,
        found=ascii(found)[:120],
        remedy="restore it, or remove the folder updates/ and give --root again",
    )
