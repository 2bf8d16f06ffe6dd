"""staging/: work in progress. Never served; resumable by its run digest; cleaned by the next run.

staging/000007/       what will be published, if it is
staging/000007.run/   run.json (digest and parent) and the checkpoints of that run
staging/refused/      the last generation that the gate refused; refusals.json there: it and those before
staging/base/         the base model of a workspace that is being created
staging/trash/        on its way out
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import NamedTuple

from edge_pslora.errors import WorkspaceError
from edge_pslora.workspace import durable, layout, refusals, strict_json

_TEMPORARY = re.compile(r"\.(.+)\.[0-9]{1,9}\.[0-9a-f]{8}\.tmp")


class Staged(NamedTuple):
    """A run in progress: the number it will have, its folder, and whether it is a resumed one."""

    number: int
    folder: Path
    resumed: bool

    @property
    def scratch(self) -> Path:
        """For checkpoints; kept for a resumed run, never published."""
        return layout.scratch_folder(self.folder)


def begin(workspace: Path, number: int, run_digest: str, parent: int | None) -> Staged:
    """The staging folder of the run; leftovers of other runs are removed first."""
    folder = layout.staging_folder(workspace, number)
    scratch = layout.scratch_folder(folder)
    resumed = read_run(workspace, number) == (run_digest, parent) and folder.is_dir()
    staging = workspace / layout.STAGING
    records = [] if resumed else refusals.set_aside(staging, staging / layout.REFUSED)
    # the same run again is no second session, whatever came of the first try
    records = [record for record in records if record.get("run") != run_digest]
    clean(workspace, keep={folder.name, scratch.name} if resumed else {refusals.REFUSALS})
    if resumed:
        _remove_temporaries(folder)
        _remove_temporaries(scratch)
    else:
        # run.json last: before it is there, the folders count as a leftover
        durable.make_folder(staging)
        durable.make_folder(folder)
        durable.make_folder(scratch)
        refusals.keep(scratch, records)
        run = {"run_digest": run_digest, "parent": parent}
        durable.write_bytes(scratch / layout.RUN, strict_json.canonical(run))
        refusals.dropped(staging)
    return Staged(number, folder, resumed)


def read_run(workspace: Path, number: int) -> tuple[str, int | None] | None:
    """(run digest, parent) of the run staged under `number`; None if there is none to trust."""
    path = layout.scratch_folder(layout.staging_folder(workspace, number)) / layout.RUN
    if not path.exists():
        return None
    try:
        run = strict_json.read(path)
    except WorkspaceError:
        return None  # not ours or damaged: the run starts again from the beginning
    digest, parent = run.get("run_digest"), run.get("parent")
    if not isinstance(digest, str) or not (parent is None or (type(parent) is int and parent >= 1)):
        return None
    return digest, parent


def refuse(workspace: Path, staged: Path, record: refusals.Record | None = None) -> Path:
    """Rename the staged folder to staging/refused; the previous one there is removed.

    record: what to remember of it, see refusals.py.
    """
    records = refusals.read(layout.scratch_folder(staged))
    if record is not None:
        number = layout.parse_generation_name(staged.name)
        run = None if number is None else read_run(workspace, number)
        records = [*records, {**record, "run": None if run is None else run[0]}]
    if records:
        refusals.write(staged, records)
    refused = workspace / layout.STAGING / layout.REFUSED
    trash = workspace / layout.STAGING / layout.TRASH
    if refused.exists():
        durable.remove_folder(refused, trash)
    scratch = layout.scratch_folder(staged)
    if scratch.exists():
        durable.remove_folder(scratch, trash)
    durable.rename_durably(staged, refused)
    return refused


def refused_so_far(workspace: Path) -> list[refusals.Record]:
    """The records of refused sessions that no manifest has yet, wherever a run or a kill left them."""
    folder = workspace / layout.STAGING
    if not folder.is_dir():
        return []
    places = [folder / layout.REFUSED, folder, *sorted(folder.glob("*.run"))]
    return next((records for place in places if (records := refusals.read(place))), [])


def stage_base(workspace: Path) -> Path:
    """An empty staging/base; whatever a killed creation left is removed."""
    clean(workspace)
    durable.make_folder(workspace / layout.STAGING)
    folder = workspace / layout.STAGING / layout.STAGED_BASE
    durable.make_folder(folder)
    return folder


def clean(workspace: Path, *, keep: set[str] | frozenset[str] = frozenset()) -> None:
    """Remove everything in staging/ except `keep`, and temporary files of killed writers."""
    for name in (layout.CURRENT, layout.WORKSPACE_FILE):
        durable.remove_leftovers(workspace, name)
    folder = workspace / layout.STAGING
    if not folder.is_dir():
        return
    trash = folder / layout.TRASH
    with durable.storage_errors(folder, "staging"):
        for entry in sorted(folder.iterdir()):
            if entry.name in keep or entry == trash:
                continue
            if entry.is_dir() and not entry.is_symlink():
                durable.remove_folder(entry, trash)
            else:
                entry.unlink()
        if trash.exists():
            shutil.rmtree(trash)
        durable.fsync_folder(folder)


def forget_published(workspace: Path, numbers: tuple[int, ...]) -> None:
    """Remove the run folders of generations that were published (left by a kill just after)."""
    for number in numbers:
        scratch = layout.scratch_folder(layout.staging_folder(workspace, number))
        if scratch.exists():
            durable.remove_folder(scratch, workspace / layout.STAGING / layout.TRASH)


def leftovers(workspace: Path) -> list[str]:
    """One line for each thing that a next run would resume or remove."""
    lines = []
    folder = workspace / layout.STAGING
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    for name in names:
        number = layout.parse_generation_name(name)
        if name == layout.REFUSED:
            lines.append(
                "staging/refused: the gate refused this generation; kept until the next run"
            )
        elif number is not None and read_run(workspace, number) is not None:
            lines.append(f"staging/{name}: an unfinished run; the same command resumes it")
        elif not name.endswith(".run"):
            lines.append(f"staging/{name}: left over; the next run removes it")
    lines += [
        f"{entry.name}: left by a killed process; the next run removes it"
        for entry in sorted(workspace.iterdir())
        if is_temporary(entry.name)
    ]
    return lines


def _remove_temporaries(folder: Path) -> None:
    """Files in the making when the earlier try was killed: they must not be published."""
    with durable.storage_errors(folder, "staging"):
        for path in sorted(folder.rglob(".*.tmp")):
            if is_temporary(path.name):
                path.unlink()


def is_temporary(name: str) -> bool:
    """Whether this is a name that durable.new_file gives to a file in the making."""
    return _TEMPORARY.fullmatch(name) is not None
