"""Faults that a section must find, put into the running code before it starts."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge_pslora.workspace import durable, layout, pointer, staging, workspace
from edge_pslora.workspace.pointer import Pointer, replace_pointer
from edge_pslora.workspace.workspace import Workspace

_ONLY: list[str] = []


def only() -> frozenset[str] | None:
    """The scenes in which the planted fault shows: the others need not run. None: all."""
    return frozenset(_ONLY) or None


def _pointer_early() -> None:
    """The pointer moves before what it points to has its name."""

    def early(staged: Path, final: Path) -> None:
        number = layout.parse_generation_name(final.name)
        if number is not None:
            digest = hashlib.sha256((staged / layout.MANIFEST).read_bytes()).hexdigest()
            replace_pointer(final.parents[1], Pointer(number, digest))
        real(staged, final)

    real = durable.publish_folder
    durable.publish_folder = early
    _ONLY.append("promote")


def _without_staging() -> None:
    """Files are copied to where they are served from, one by one."""

    def copied(staged: Path, final: Path) -> None:
        if layout.parse_generation_name(final.name) is None:
            real(staged, final)
            return
        shutil.copytree(staged, final)
        shutil.rmtree(staged)

    real = durable.publish_folder
    durable.publish_folder = copied
    _ONLY.append("promote")


def _leftovers() -> None:
    """What a killed writer left in the making is not removed."""
    for module in (durable, pointer):
        vars(module)["remove_leftovers"] = lambda folder, name: None
    _ONLY.append("rollback")


def _uncleaned() -> None:
    """The folder of a run is kept after its publication."""
    staging.clean = lambda path, *, keep=frozenset(): None
    _ONLY.append("promote")


def _in_place() -> None:
    """A published file is changed where it lies, and changed back."""

    def publish(self: Workspace, staged: Path, content: Any) -> Any:
        current = self.current()
        assert current is not None
        path = current.path / layout.MODEL
        data = path.read_bytes()
        path.write_bytes(data[:-1] + b"\0")
        done = real(self, staged, content)
        path.write_bytes(data)
        return done

    real = workspace.Workspace.publish
    workspace.Workspace.publish = publish  # type: ignore[method-assign]
    _ONLY.append("promote")


def _resume_without_moments() -> None:
    """A resumed run starts with the optimiser as new."""
    from edge_pslora.pipeline.memory_files import FileCheckpoints

    def load(self: Any) -> Any:
        saved = real(self)
        for name, array in () if saved is None else saved[0].items():
            if name.endswith(".exp_avg"):
                array[...] = 0
        return saved

    real = FileCheckpoints.load
    FileCheckpoints.load = load  # type: ignore[method-assign]
    _ONLY.append("resume")


PLANTS: Mapping[str, Callable[[], None]] = {
    "pointer before data": _pointer_early,
    "no staging": _without_staging,
    "leftovers": _leftovers,
    "uncleaned": _uncleaned,
    "in place": _in_place,
    "resume without moments": _resume_without_moments,
}
