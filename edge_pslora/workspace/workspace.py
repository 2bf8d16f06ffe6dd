"""A workspace: one folder, one writer at a time, generations that change only by one atomic step.

Every method that writes expects the caller to hold lock.writer_lock(path). No torch is needed.
The order of a publication is: files, manifest, fsync of all, rename into generations/, fsync,
pointer. A process that dies before the last step leaves the old generation serving.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_pslora.config import TaskType
from edge_pslora.errors import EdgePsloraError, UsageError, WorkspaceError
from edge_pslora.workspace import durable, header, layout, manifest, staging, strict_json
from edge_pslora.workspace.generation import Generation, load, load_current, numbers
from edge_pslora.workspace.header import Header
from edge_pslora.workspace.manifest import Manifest
from edge_pslora.workspace.pointer import NOTHING, replace_pointer
from edge_pslora.workspace.staging import Staged
from edge_pslora.workspace.status import describe
from edge_pslora.workspace.update_state import going_back, known_state, replace_state


@dataclass(frozen=True)
class Workspace:
    """An existing workspace; see open and create."""

    path: Path
    header: Header

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether a workspace was completely created at `path` (it may still be damaged)."""
        return (path / layout.WORKSPACE_FILE).exists()

    @classmethod
    def open(cls, path: Path) -> Workspace:
        """Read and check workspace.json and the lengths of base/; the pointer is not looked at.

        Raises:
            WorkspaceError: no workspace, an unknown format version, or damaged.
        """
        return cls(path, header.read(path))

    @staticmethod
    def stage_base(path: Path) -> Path:
        """An empty folder staging/base for the files of a new workspace's base model.

        Raises:
            WorkspaceError: `path` is a workspace already, or holds other people's files.
        """
        others = {entry.name for entry in path.iterdir()} - layout.ROOT_NAMES
        others = {name for name in others if not staging.is_temporary(name)}
        if Workspace.exists(path) or others:
            raise WorkspaceError(
                str(path),
                expected="a new or empty folder",
                found="a workspace" if not others else f"other files, such as {min(others)}",
                remedy="choose another --workspace",
            )
        return staging.stage_base(path)

    @classmethod
    def create(
        cls,
        path: Path,
        base: Path,
        *,
        task_type: TaskType,
        labels: tuple[str, ...],
        source: Mapping[str, Any],
    ) -> Workspace:
        """Make a workspace from a staged base (stage_base); workspace.json is written last.

        Args:
            base: the folder from stage_base, with model.safetensors and the base's other files.
            labels: those that the base model brought along, () if none.
            source: ModelSource as JSON values; stored as base/source.json too.
        """
        durable.write_bytes(base / layout.SOURCE, strict_json.canonical(dict(source)))
        files = manifest.describe_files(base)
        content = Header(header.digest_of(files, str(base)), task_type, labels, dict(source), files)
        final = path / layout.BASE
        if final.exists():  # left by a creation that was killed before workspace.json
            durable.remove_folder(final, path / layout.STAGING / layout.TRASH)
        durable.publish_folder(base, final)
        durable.make_folder(path / layout.GENERATIONS)
        replace_pointer(path, NOTHING)
        durable.sync_parents(path)  # before there is a workspace that may lose its name
        durable.write_bytes(path / layout.WORKSPACE_FILE, header.encode(content))
        return cls.open(path)

    def discard(self) -> None:
        """Undo `create`. A workspace with a generation is left alone."""
        if self.generations():
            return
        with durable.storage_errors(self.path, layout.WORKSPACE_FILE):
            # workspace.json first: what a kill leaves then counts as an unfinished creation
            durable.remove_file(self.path / layout.WORKSPACE_FILE)
            (self.path / layout.CURRENT).unlink()
            for name in (layout.GENERATIONS, layout.BASE, layout.STAGING):
                if (self.path / name).exists():
                    shutil.rmtree(self.path / name)

    @property
    def base(self) -> Path:
        return self.path / layout.BASE

    def verify_base(self) -> None:
        """Check the sha256 of every file in base/: call it before the base is loaded."""
        manifest.verify_files(self.base, self.header.base_files, contents=None)

    def generations(self) -> tuple[int, ...]:
        """Numbers of the published generations, ascending."""
        return numbers(self.path)

    def generation(self, number: int) -> Generation:
        """One of them, its manifest read and the lengths of its files checked."""
        return load(self.path, number, self.header.base_digest)

    def current(self) -> Generation | None:
        """The generation that serves; None before the first is published."""
        return load_current(self.path, self.header.base_digest)

    def published(self, number: int | None = None) -> Generation:
        """Generation `number`, or the one that serves.

        Raises:
            UsageError: nothing was published yet.
            WorkspaceError: no such generation, or a damaged one.
        """
        chosen = self.current() if number is None else self.generation(number)
        if chosen is None:
            raise UsageError(
                str(self.path),
                expected="a published generation",
                found="none",
                remedy="run edge-pslora adapt first",
            )
        return chosen

    def labels(self) -> tuple[str, ...]:
        """The labels of the current generation, or of the base."""
        current = self.current()
        return current.labels if current is not None else self.header.labels

    def recover(self, run_digest: str) -> Generation | None:
        """Finish a publication of this very run that was killed just before or after its last step.

        Returns:
            The generation, now current; None when there is nothing to finish (the usual case).
        """
        number = max(self.generations(), default=0)
        run = None if number == 0 else staging.read_run(self.path, number)
        if run is None or run[0] != run_digest:
            return None
        generation = self.generation(number)
        parent = generation.manifest.parent
        if run[1] != parent or self._parent() not in (parent, number):
            return None
        generation.verify()
        replace_pointer(self.path, generation.pointer())
        _clean_if_possible(self.path)
        return generation

    def unfinished(self, run_digest: str) -> Path | None:
        """The scratch folder of the run that `begin` would resume; None: it would start a new one."""
        number = max(self.generations(), default=0) + 1
        if staging.read_run(self.path, number) != (run_digest, self._parent()):
            return None
        return layout.scratch_folder(layout.staging_folder(self.path, number))

    def begin(self, run_digest: str) -> Staged:
        """Start (or resume) the run that makes the next generation.

        Args:
            run_digest: sha256 of everything the run depends on. A staged run with the same digest
                and the same parent is resumed; any other leftover is removed.

        Returns:
            number, folder (staging/000007: all that is put there will be published) and resumed;
            `.scratch` is a folder for checkpoints, which is never published.
        """
        number = max(self.generations(), default=0) + 1
        return staging.begin(self.path, number, run_digest, self._parent())

    def publish(self, staged: Path, content: Manifest, *, serve: bool = True) -> Generation:
        """Make the staged folder a generation and the current one.

        `content.files` is filled in here: length and sha256 of every file in `staged`.

        Args:
            serve: False leaves the pointer where it is, and staging/ to the next run: the generation is
                there, and another step decides when it serves (update_state.py).

        Raises:
            WorkspaceError: wrong number, parent or base digest, repeated labels, ...
            EdgePsloraError: the disk failed or is full; the old generation still serves.
        """
        number = max(self.generations(), default=0) + 1
        expected = (number, self._parent(), self.header.base_digest)
        if (content.number, content.parent, content.base_digest) != expected or (
            staged != layout.staging_folder(self.path, number)
        ):
            raise WorkspaceError(
                str(staged),
                expected=f"generation {number} on parent {expected[1]}, from its staging folder",
                found=f"generation {content.number} on parent {content.parent}",
                remedy="start the run again: the workspace changed meanwhile",
            )
        filled = replace(content, files=manifest.describe_files(staged))
        durable.write_bytes(staged / layout.MANIFEST, manifest.encode(filled))
        durable.publish_folder(staged, layout.generation_folder(self.path, number))
        generation = self.generation(number)
        if serve:
            replace_pointer(self.path, generation.pointer())
            _clean_if_possible(self.path)
        return generation

    def refuse(self, staged: Path, record: Mapping[str, Any] | None = None) -> Path:
        """Put a generation that the gate refused aside, to look at until the next run.

        record: what is remembered of it after that (refusals.record_of).
        """
        return staging.refuse(self.path, staged, None if record is None else dict(record))

    def refusals(self) -> list[dict[str, Any]]:
        """What the gate refused since the last generation was published, oldest first."""
        return staging.refused_so_far(self.path)

    def rollback(self, to: int | None = None) -> Generation | None:
        """Move the pointer to the current generation's parent, or to `to`. Deletes nothing.

        Every file of the target is checked first. With `to`, a damaged pointer does not matter. An
        update that was on trial is no longer, and is not taken again; where nothing served before it,
        nothing does afterwards.

        Returns:
            What serves now; None: nothing.
        """
        state = known_state(self.path)
        trial = None if state is None else state.trial
        if to is None:
            to = self._served_before() if trial is None else trial.previous
        target = None if to is None else self.generation(to)
        if target is not None:
            target.verify()
        # a run killed after its publication must not be "recovered" once the user went back
        staging.forget_published(self.path, self.generations())
        if state is not None and trial is not None:
            state = going_back(state, to)
            replace_state(self.path, state)
        replace_pointer(self.path, NOTHING if target is None else target.pointer())
        if state is not None and trial is not None:
            replace_state(self.path, replace(state, trial=None))
        return target

    def _served_before(self) -> int:
        current = self.current()
        parent = None if current is None else current.manifest.parent
        if parent is None:
            raise UsageError(
                str(self.path),
                expected="a generation before the current one",
                found="none" if current is None else f"generation {current.number}, the first",
                remedy="nothing was changed; name one with --to NUMBER",
            )
        return parent

    def status(self, *, verify: bool = False) -> dict[str, Any]:
        """What is in the workspace, as JSON values; see status.describe."""
        return describe(self.path, self.header, verify=verify)

    def _parent(self) -> int | None:
        current = self.current()
        return None if current is None else current.number


def _clean_if_possible(path: Path) -> None:
    """Empty staging/. The generation serves already, so a failure here is not one of the run;
    status names what was left and the next run's cleaning, which is not optional, removes it.
    """
    with suppress(EdgePsloraError):
        staging.clean(path)
