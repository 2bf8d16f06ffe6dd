"""Power loss, replayed: each command's trace, and at every call all that the disk may then hold.

What a command wrote is recorded once, call by call, under a model of a disk (disk.py) that promises no
more than POSIX. Whatever may be found after a power loss is made a real folder and looked at: the old
state or the new one, whole; the new one once the command had said that it was done.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge_pslora.workspace import layout
from tests.torture import faults
from tests.torture.acts import (
    SAID,
    Ends,
    Scene,
    finished,
    perform,
    problem,
    read_tree,
    remove,
    restore,
    serving,
    write_tree,
)
from tests.torture.acts_files import file_scenes
from tests.torture.disk import Disk, Tree
from tests.torture.plan import Plan, Row
from tests.torture.tracer import Call, Traced, run_traced

PLANTS = {
    "no fsync of files": faults.no_fsync_of_files,
    "no fsync of folders": faults.no_fsync_of_folders,
    "pointer before data": faults.pointer_before_data,
    "written in place": faults.written_in_place,
    "parents not synced": faults.parents_not_synced,
}
_ENOUGH = 3  # so many bad cases tell what there is to tell


@dataclass
class Found:
    """Of one scene. calls: that change files. wrong: the first of each kind."""

    calls: int = 0
    states: int = 0
    bad: int = 0
    again: int = 0
    again_bad: int = 0
    killed: int = 0
    killed_bad: int = 0
    renames: int = 0
    unsynced: int = 0
    complete: bool = True
    first: dict[str, str] = field(default_factory=dict)

    @property
    def wrong(self) -> int:
        return self.bad + self.again_bad + self.killed_bad + self.unsynced

    def note(self, kind: str, what: str) -> None:
        self.first.setdefault(kind, what)


@dataclass(frozen=True)
class Recorded:
    """ends: what is there before and after. calls: the trace; `said`: the number of the report."""

    scene: Scene
    ends: Ends
    calls: list[Call]
    said: int
    root: str


def run(plan: Plan) -> list[Row]:
    scenes = file_scenes()
    if not plan.quick:
        from tests.torture.acts_learning import learning_scenes

        scenes += learning_scenes(plan.scratch)
    found = {}
    with tempfile.TemporaryDirectory(dir=_memory(), prefix="torture-power-") as folder:
        for scene in scenes:
            found[scene.name] = _torture(scene, plan, Path(folder))
            if found[scene.name].wrong >= _ENOUGH:
                break
    return _rows(found, plan)


def record(scene: Scene, folder: Path, start: Tree | None = None) -> Recorded:
    """The scene's work once, under the tracer. start: what is there; None: what the scene begins with."""
    root = folder / "recorded"
    if start is None:
        scene.prepare(root)
    else:
        restore(root, start)
    before, old = read_tree(root), serving(root, scene)
    traced: Traced = run_traced(lambda: perform(scene, root, folder / "errors"), root, record=True)
    if traced.exit != scene.ends:
        said = (folder / "errors").read_text() + (root / SAID).read_text()
        raise AssertionError(f"{scene.name} ended with {traced.exit}: {said}")
    after = read_tree(root)
    ends = Ends(before, after, old, serving(root, scene))
    said = root / SAID
    reports = [c.number for c in traced.calls if c.name == "write" and c.path == str(said)]
    last = reports[-1] if reports else len(traced.calls)  # what stands before are notes
    return Recorded(scene, ends, traced.calls, last, str(root))


def _torture(scene: Scene, plan: Plan, folder: Path) -> Found:
    recorded = record(scene, folder)
    found = Found(calls=len(recorded.calls))
    _check_order(recorded, found)
    states = list(_states(recorded, plan))
    random_ = random.Random(plan.seed)
    most = plan.size(1500, 150)
    chosen = random_.sample(states, min(len(states), most))
    again = set(
        random_.sample(range(len(chosen)), min(len(chosen), plan.size(8 if scene.slow else 25, 6)))
    )
    here, known = folder / "state", {}
    remove(here)
    here.mkdir()
    for place, (tree, reported, when) in enumerate(chosen):
        write_tree(here, tree, known)
        known = tree
        found.states += 1
        wrong = problem(here, scene, tree, recorded.ends, reported=reported)
        if wrong is not None:
            found.bad += 1
            found.note("state", f"{scene.name}, {when}: {wrong}")
            if found.wrong >= _ENOUGH:
                return found
        elif place in again:
            found.again += 1
            remove(folder / "again")
            shutil.copytree(here, folder / "again", symlinks=True)
            wrong = finished(scene, folder / "again", folder / "errors", recorded.ends)
            if wrong is not None:
                found.again_bad += 1
                found.note("again", f"{scene.name}, {when}, run again: {wrong}")
    _killed_before(recorded, plan, folder, found)
    return found


def _states(
    recorded: Recorded, plan: Plan, disk: Disk | None = None
) -> Iterator[tuple[Tree, bool, str]]:
    """Every distinct tree that a power loss may leave, after each call; whether the end was reported.

    disk: what is pending when the work begins; None: nothing.
    """
    random_ = random.Random(plan.seed)
    disk = Disk(recorded.root, recorded.ends.before) if disk is None else disk
    seen = set()
    for call in [None, *recorded.calls]:
        if call is not None:
            disk.apply(call)
        reported = call is not None and call.number >= recorded.said
        for tree in disk.crashes(random_, plan.size(30, 4), plan.size(60, 400)):
            tree = {name: content for name, content in tree.items() if name != SAID}
            key = hash((reported, *tree.items()))
            if key not in seen:
                seen.add(key)
                when = (
                    "before"
                    if call is None
                    else f"{call.number} {call.name} {_short(call, recorded)}"
                )
                yield tree, reported, f"after call {when}"


def _killed_before(recorded: Recorded, plan: Plan, folder: Path, found: Found) -> None:
    """Killed at a call, then run again to its end: what the first run left pending may still be lost."""
    random_ = random.Random(plan.seed)
    scene, ends = recorded.scene, recorded.ends
    done = max((c.number for c in recorded.calls if c.number < recorded.said), default=0)
    kills = random_.sample(range(1, done + 1), min(done, plan.size(4 if scene.slow else 40, 2)))
    here = folder / "state"
    for kill in kills:
        disk = Disk(recorded.root, ends.before)
        for call in recorded.calls[:kill]:
            disk.apply(call)
        start = {name: content for name, content in disk.tree().items() if name != SAID}
        restore(here, start)
        wrong = problem(here, scene, start, ends, reported=False)
        if wrong is not None:
            found.killed_bad += 1
            found.note("killed", f"{scene.name}, killed at {kill}: {wrong}")
            return
        second = record(scene, folder, start)
        if second.ends.new != ends.new:
            continue  # the first run was all but over, and this is another session
        both = replace(second.ends, before=ends.before, old=ends.old)
        states = list(_states(second, plan, disk))
        for tree, reported, when in random_.sample(
            states, min(len(states), plan.size(150 if scene.slow else 60, 20))
        ):
            restore(here, tree)
            found.killed += 1
            wrong = problem(here, scene, tree, both, reported=reported)
            if wrong is not None:
                found.killed_bad += 1
                found.note("killed", f"{scene.name}, killed at {kill}, run again, {when}: {wrong}")
        if found.wrong >= _ENOUGH:
            return


def _short(call: Call, recorded: Recorded) -> str:
    return (call.target or call.path).removeprefix(f"{recorded.root}/")


def _check_order(recorded: Recorded, found: Found) -> None:
    """The trace is all that happened, and each file got its name after its bytes were synced."""
    disk = Disk(recorded.root, recorded.ends.before)
    for call in recorded.calls:
        public = call.name == "rename" and call.result == 0 and _public(call.target or "", recorded)
        if public:
            found.renames += len(disk.below(call.path))
            pending = disk.unsynced(call.path)
            if pending:
                found.unsynced += 1
                found.note("order", f"{recorded.scene.name}: {pending[0]} renamed before its fsync")
        if call.number == recorded.said:
            _check_report(recorded, disk, found)
        disk.apply(call)
    simulated = {n: c for n, c in disk.tree().items() if n != SAID}
    real = {n: c for n, c in recorded.ends.after.items() if n != SAID}
    if simulated != real:
        found.complete = False
        names = simulated.keys() ^ real.keys() or {n for n in real if real[n] != simulated[n]}
        found.note("trace", f"{recorded.scene.name}: the trace does not explain {min(names)}")


def _check_report(recorded: Recorded, disk: Disk, found: Found) -> None:
    """When the command says that it is done, nothing of what it published is pending."""
    ends = recorded.ends
    for path in disk.unsynced(recorded.root):
        name = path.removeprefix(f"{recorded.root}/")
        if _public(path, recorded) and (name in ends.before or name in ends.after):
            found.unsynced += 1
            found.note(
                "order", f"{recorded.scene.name}: {path} not synced when it said it was done"
            )


def _public(path: str, recorded: Recorded) -> bool:
    """Whether a name counts: not the lock, not what is in the making or on its way out."""
    parts = path.removeprefix(recorded.root).strip("/").split("/")
    hidden = any(part.startswith(".") for part in parts)
    return not hidden and layout.STAGING not in parts and parts[-1] != layout.LOCK


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _rows(found: dict[str, Found], plan: Plan) -> list[Row]:
    def row(what: str, cases: str, bad: str, wanted: int, kind: str) -> Row:
        first = next((f.first[kind] for f in found.values() if kind in f.first), "")
        note = first or ", ".join(f"{name} {getattr(f, cases)}" for name, f in found.items())
        total = (sum(getattr(f, field_) for f in found.values()) for field_ in (cases, bad))
        return Row(what, *total, wanted=wanted, note=note)

    incomplete = sum(not f.complete for f in found.values())
    note = next((f.first["trace"] for f in found.values() if "trace" in f.first), "")
    return [
        Row(
            "power: traces that explain every byte of their end", len(found), incomplete, note=note
        ),
        row("power: file fsync, rename, folder fsync", "renames", "unsynced", 10, "order"),
        row("power: states after a power loss", "states", "bad", plan.size(5000, 500), "state"),
        row(
            "power: killed, run again, power loss",
            "killed",
            "killed_bad",
            plan.size(5000, 100),
            "killed",
        ),
        row("power: the same command run again", "again", "again_bad", plan.size(100, 20), "again"),
    ]
