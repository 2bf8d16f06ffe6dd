"""One command killed, perhaps its second try too; what is found then, and after one more run."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edge_pslora.errors import EdgePsloraError
from edge_pslora.workspace import layout
from edge_pslora.workspace.workspace import Workspace
from tests.torture.kill_scenes import Scene
from tests.torture.tracer import kill_at, run_traced

Snapshot = Mapping[str, str]


@dataclass(frozen=True)
class Kill:
    """Before the call with that number is made; or so many seconds after the start."""

    number: int = 0
    seconds: float = 0.0


@dataclass
class Found:
    """What was wrong, one line each. mixed: neither old nor new. lost: what was there is gone."""

    mixed: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unhealed: list[str] = field(default_factory=list)

    def all(self) -> list[str]:
        return [*self.mixed, *self.lost, *self.unhealed]


@dataclass(frozen=True)
class Ends:
    """Before the command and after an uninterrupted run: files, and the number that serves."""

    before: Snapshot
    after: Snapshot
    serving: tuple[int, int]
    calls: int
    seconds: float


def uninterrupted(
    scene: Scene, scratch: Path, *, timed: bool, earlier: Snapshot | None = None
) -> Ends:
    """Runs the scene as it is meant; counts its mutating calls.

    timed: runs it again without a tracer. earlier: what another run left. All runs must leave the same.
    """
    folder = scene.copied(scratch / "whole")
    before, served = snapshot(folder, scene.dated), _serving(folder)
    began = time.monotonic()
    traced = run_traced(lambda: scene.run(folder)[0], folder)
    seconds = time.monotonic() - began
    if traced.exit != scene.code:
        raise AssertionError(f"{scene.name}: exit {traced.exit}: {scene.run(folder)[1]}")
    after = snapshot(folder, scene.dated)
    ends = (served, _serving(folder))
    shutil.rmtree(folder)
    others = [] if earlier is None else [earlier]
    if timed:
        again = scene.copied(scratch / "timed")
        began = time.monotonic()
        strike(scene, again, Kill(seconds=60.0))
        seconds = time.monotonic() - began
        others.append(snapshot(again, scene.dated))
        shutil.rmtree(again)
    for other in others:
        if other != after:
            difference = _difference(other, after)
            raise AssertionError(f"{scene.name}: two whole runs differ: {difference}")
    return Ends(before, after, ends, len(traced.calls), seconds)


def attempt(scene: Scene, ends: Ends, kills: Sequence[Kill], folder: Path) -> Found:
    """Kill, look, kill the next try, look ... then run to the end, look for what is left."""
    scene.copied(folder)
    found = Found()
    for kill in kills:
        code = strike(scene, folder, kill)
        if kill.number and len(kills) == 1 and code != -signal.SIGKILL:
            found.unhealed.append(f"call {kill.number} was not reached: exit {code}")
        _survivor(scene, folder, ends, found)
        if scene.learns and _finished(folder, ends):
            break  # all was done before the kill: the next would be another session
    finished = scene.learns and _finished(folder, ends)
    code, printed = scene.run(folder)
    if code != scene.code:
        found.unhealed.append(f"run again: exit {code}: {printed.strip()[-300:]}")
    elif finished:
        _next_session(scene, folder, ends, found)
    elif (state := snapshot(folder, scene.dated)) != ends.after:
        found.unhealed.append(f"run again: {_difference(state, ends.after)}")
    elif _serving(folder) != ends.serving[1]:
        found.unhealed.append(f"run again: generation {_serving(folder)} serves")
    found.unhealed += [f"left: {name}" for name in _left(folder)]
    shutil.rmtree(folder)
    return found


def strike(scene: Scene, folder: Path, kill: Kill) -> int:
    """The child's exit code: -9 if it was killed before its end."""
    if kill.number:
        return run_traced(lambda: scene.run(folder)[0], folder, kill_at(kill.number)).exit
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = scene.run(folder)[0]
        finally:
            os._exit(code)
    end = time.monotonic() + kill.seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
            end = float("inf")
        time.sleep(0.0005)


def snapshot(folder: Path, dated: frozenset[str] = frozenset()) -> dict[str, str]:
    """Relative path -> sha256 of what is in a file, or "folder"; of dated files that they exist."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            found[name] = "folder"
        elif path.name in dated and name.startswith("w/"):
            found[name] = "dated"
        elif name != "w/lock":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _survivor(scene: Scene, folder: Path, ends: Ends, found: Found) -> None:
    """What must hold after any kill."""
    state = snapshot(folder, scene.dated)
    for name, digest in ends.before.items():
        if name.startswith(("w/base/", "w/generations/", "w/workspace.json")) and name not in state:
            found.lost.append(f"{name} is gone")
        elif name == "w/current" and name not in state:
            found.lost.append("the pointer is gone")
        elif digest != "folder" and name not in ends.after and name not in state:
            found.lost.append(f"{name} is gone, and was not to go")
    more = max(ends.serving) + 1  # a second session of a command that had come to its end
    for name, digest in state.items():
        known = {ends.before.get(name), ends.after.get(name)}
        published = name.startswith(("w/base/", "w/generations/"))
        if published and digest not in known and f"/{more:06d}" not in name:
            found.mixed.append(f"{name} is neither old nor new")
    try:
        if Workspace.exists(folder / "w"):
            opened = Workspace.open(folder / "w")
            found.mixed += opened.status(verify=True)["damage"]
            allowed = {*ends.serving, *scene.between}
            if _serving(folder) not in allowed:
                found.lost.append(f"generation {_serving(folder)} serves, not of {allowed}")
    except EdgePsloraError as problem:
        found.mixed.append(str(problem))
    _outputs(scene, folder, state, ends, found)


def _outputs(scene: Scene, folder: Path, state: Snapshot, ends: Ends, found: Found) -> None:
    """Outside the workspace: old, new or not there; a deployed model: of one generation."""
    for top in {name.split("/")[0] for name in state} - {"w"}:
        if top.startswith("."):
            continue  # in the making
        if scene.deployed is not None and scene.deployed.startswith(f"{top}/"):
            try:
                number = _deployed(folder, folder / scene.deployed)
            except EdgePsloraError as problem:
                found.mixed.append(str(problem))
            else:
                if number not in (1, 2):
                    found.mixed.append(f"{scene.deployed} is no generation's")
            continue
        part = _below(state, top)
        if part not in (_below(ends.before, top), _below(ends.after, top)):
            found.mixed.append(f"{top}: {_difference(part, _below(ends.after, top))}")


def _deployed(folder: Path, path: Path) -> int:
    """The generation of which it is, whole, whatever its second file is called; 0: of none."""
    from edge_pslora.exporters import onnx_file
    from edge_pslora.exporters.onnx_read import open_model
    from edge_pslora.exporters.run import open_onnx

    opened = Workspace.open(folder / "w")
    with open_model(path) as file:
        whole = onnx_file.digests(onnx_file.plan(file.model, file.sizes, None), file.weights)
        number = int(file.metadata["pslora.generation"])
    inputs = {"x": np.zeros((2, 3), np.float32)}
    if not np.isfinite(open_onnx(path, threads=1).run(inputs)).all():
        return 0
    published = opened.generation(number).manifest.files[layout.ONNX]
    return number if whole == (published,) else 0


def _finished(folder: Path, ends: Ends) -> bool:
    """All was done but the cleaning: the same command is a session of its own."""
    if _serving(folder) != ends.serving[1]:
        return False
    scratch = folder / "w" / layout.STAGING / f"{ends.serving[1]:06d}.run"
    return not (scratch / layout.RUN).exists()


def _next_session(scene: Scene, folder: Path, ends: Ends, found: Found) -> None:
    state = snapshot(folder, scene.dated)
    more = f"w/generations/{ends.serving[1] + 1:06d}"
    state = {n: d for n, d in state.items() if n != more and not n.startswith(f"{more}/")}
    wanted = dict(ends.after)
    for values in (state, wanted):
        values.pop("w/current", None)
    if state != wanted:
        found.unhealed.append(f"the next session: {_difference(state, wanted)}")
    found.unhealed += Workspace.open(folder / "w").status(verify=True)["damage"]


def _left(folder: Path) -> list[str]:
    """Files in the making and work in progress that nobody is at; a refused generation may stay."""
    hidden = [p.name for p in folder.rglob("*") if p.name.startswith(".")]
    staged = [p.name for p in (folder / "w" / layout.STAGING).glob("*")]
    return hidden + [name for name in staged if name != layout.REFUSED]


def _serving(folder: Path) -> int:
    """Its number; 0: none yet; -1: it is damaged or not there."""
    if not Workspace.exists(folder / "w"):
        return 0
    try:
        current = Workspace.open(folder / "w").current()
    except EdgePsloraError:
        return -1
    return 0 if current is None else current.number


def _below(state: Snapshot, top: str) -> dict[str, str]:
    return {n: d for n, d in state.items() if n == top or n.startswith(f"{top}/")}


def _difference(found: Snapshot, wanted: Snapshot) -> str:
    more, less = sorted(set(found) - set(wanted)), sorted(set(wanted) - set(found))
    other = sorted(n for n in set(found) & set(wanted) if found[n] != wanted[n])
    return f"too many {more[:3]}, missing {less[:3]}, other {other[:3]}"
