"""No space, no quota, no memory, a disk that fails: at every call that may meet it.

After each the old state is there or the new one, whole; the command said so in one line; and one normal
run ends where an undisturbed one ends and leaves nothing over.
"""

from __future__ import annotations

import errno
import random
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edge_pslora.workspace import layout
from tests.torture import faults
from tests.torture.acts import (
    Ends,
    Scene,
    perform,
    read_tree,
    restore,
    serving,
)
from tests.torture.acts_files import file_scenes
from tests.torture.forked import in_processes
from tests.torture.judging import ENOUGH, Bench, Known, judged, tally_row
from tests.torture.limits import limit_rows
from tests.torture.plan import Plan, Row
from tests.torture.tracer import Action, Decide, Traced, run_traced

PLANTS = {
    "retry after a failed fsync": faults.retried_fsync,
    "no space is not reported": faults.swallowed_no_space,
    "leftovers are kept": faults.leftovers_kept,
}
GROWING = {"write", "create", "mkdir", "link", "fallocate"}
_SLOW, _UPDATES = 6, 24  # points of a scene that takes seconds, or most of one
NAMING = {"rename", "unlink", "mkdir", "rmdir", "link"}


@dataclass(frozen=True)
class Kind:
    """A way to fail. points: the numbers of the calls at which it may begin. full, quick: how often at
    least. sampled: not at every point of slow scenes and of updates.
    """

    name: str
    points: Callable[[Known], list[int]]
    decide: Callable[[int], Decide]
    full: int
    quick: int
    sampled: bool = True


def run(plan: Plan) -> list[Row]:
    scenes = file_scenes()
    if not plan.quick:
        from tests.torture.acts_learning import learning_scenes

        scenes += learning_scenes(plan.scratch)
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory, prefix="torture-space-") as folder:
        known = [observe(scene, Path(folder)) for scene in scenes]
        parts = [partial(_part, KINDS[:1], known, plan, Path(folder) / "1", limits=True)]
        parts.append(partial(_part, KINDS[1:], known, plan, Path(folder) / "2"))
        return in_processes(parts, Path(folder))


def _part(
    kinds: Sequence[Kind], known: list[Known], plan: Plan, folder: Path, *, limits: bool = False
) -> list[Row]:
    folder.mkdir()
    bench = Bench(folder)
    rows = []
    for kind in kinds:
        _torture(kind, known, plan, bench)
        wanted = plan.size(kind.full, kind.quick)
        rows.append(tally_row(f"space: {kind.name}", bench.tally(kind.name), wanted))
    # what went wrong so often needs no more cases
    return rows + limit_rows(known, plan, bench) if limits and bench.bad < ENOUGH else rows


def observe(scene: Scene, folder: Path) -> Known:
    """The scene, undisturbed."""
    root = folder / "undisturbed"
    scene.prepare(root)
    before, old = read_tree(root), serving(root, scene)
    traced = run_traced(lambda: perform(scene, root, folder / "errors"), root)
    if traced.exit != scene.ends:
        raise AssertionError(f"{scene.name} ended with {traced.exit}")
    return Known(scene, Ends(before, read_tree(root), old, serving(root, scene)), traced.calls)


def _from(number: int, code: int, names: set[str]) -> Decide:
    """Those calls fail from that number on."""
    return lambda call: code if call.number >= number and call.name in names else Action.GO_ON


def _once(number: int, code: int) -> Decide:
    return lambda call: code if call.number == number else Action.GO_ON


def _of(names: set[str]) -> Callable[[Known], list[int]]:
    return lambda known: [call.number for call in known.calls if call.name in names]


KINDS = (
    Kind("fsync fails once", _of({"fsync"}), lambda n: _once(n, errno.EIO), 50, 24, False),
    Kind(
        "no space from a call on", _of(GROWING), lambda n: _from(n, errno.ENOSPC, GROWING), 50, 24
    ),
    Kind("no quota from a call on", _of(GROWING), lambda n: _from(n, errno.EDQUOT, GROWING), 50, 8),
    Kind("a write fails once", _of({"write"}), lambda n: _once(n, errno.EIO), 50, 8),
    Kind("a name cannot change", _of(NAMING), lambda n: _once(n, errno.EIO), 50, 8),
    Kind(
        "the disk becomes read-only",
        _of(GROWING | NAMING),
        lambda n: _from(n, errno.EROFS, GROWING | NAMING | {"ftruncate", "fsync"}),
        50,
        8,
    ),
)


def _torture(kind: Kind, known: Iterable[Known], plan: Plan, bench: Bench) -> None:
    tally = bench.tally(kind.name)
    random_ = random.Random(plan.seed)
    cases = []
    for one in known:
        points = kind.points(one)
        most = _SLOW if one.scene.slow else _UPDATES if one.scene.name.startswith("apply") else None
        if most is not None and kind.sampled:
            points = random_.sample(points, min(len(points), most))
        cases += [(one, number) for number in points]
    if plan.quick:
        cases = random_.sample(cases, min(len(cases), kind.quick))
    for one, number in cases:
        scene, root = one.scene, bench.folder / "root"
        restore(root, one.ends.before)
        bench.forget()
        traced = run_traced(
            partial(perform, scene, root, *bench.streams), root, kind.decide(number)
        )
        wrong = _synced_again(one, traced, number) if kind.name.startswith("fsync") else None
        wrong = wrong or judged(one, root, bench, traced.exit)
        at = next((c for c in traced.calls if c.number == number), None)
        where = "" if at is None else f"{at.name} {(at.target or at.path).removeprefix(str(root))}"
        wrong = None if wrong is None else f"{scene.name}, {kind.name}, {number} {where}: {wrong}"
        tally.add(wrong, refused=traced.exit != scene.ends)
        if bench.bad >= ENOUGH:
            return


def _synced_again(one: Known, traced: Traced, number: int) -> str | None:
    """What failed once is given up: a second fsync may succeed although the data are gone."""
    failed = next((call.path for call in traced.calls if call.number == number), None)
    if failed is None:
        return None
    if Path(failed).is_dir():
        done = traced.exit == one.scene.ends == 0 and layout.STAGING not in failed.split("/")
        return "it said that it was done although a folder was not synced" if done else None
    again = [c for c in traced.calls if (c.name, c.path) == ("fsync", failed) and c.number > number]
    return "the same file was synced again" if again else None
