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
from pathlib import Path

from tests.torture import faults
from tests.torture.judging import Bench, Known, judged, tally_row
from tests.torture.limits import limit_rows
from tests.torture.plan import Plan, Row
from tests.torture.scenes import (
    Ends,
    Scene,
    perform,
    read_tree,
    serving,
)
from tests.torture.scenes_files import file_scenes
from tests.torture.tracer import Action, Call, Decide, run_traced

PLANTS = {
    "retry after a failed fsync": faults.retried_fsync,
    "no space is not reported": faults.swallowed_no_space,
    "leftovers are kept": faults.leftovers_kept,
}
_ENOUGH = 5
GROWING = {"write", "create", "mkdir", "link", "fallocate"}
NAMING = {"rename", "unlink", "mkdir", "rmdir", "link"}


@dataclass(frozen=True)
class Kind:
    """A way to fail. points: the numbers of the calls at which it may begin."""

    name: str
    points: Callable[[Known], list[int]]
    decide: Callable[[int], Decide]
    full: int
    quick: int


def run(plan: Plan) -> list[Row]:
    scenes = file_scenes()
    if not plan.quick:
        from tests.torture.scenes_learning import learning_scenes

        scenes += learning_scenes(plan.scratch)
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory, prefix="torture-space-") as folder:
        bench = Bench(Path(folder))
        known = [observe(scene, bench.folder) for scene in scenes]
        for kind in KINDS:
            _torture(kind, known, plan, bench)
        rows = [
            tally_row(
                f"space: {kind.name}", bench.tally(kind.name), plan.size(kind.full, kind.quick)
            )
            for kind in KINDS
        ]
        return rows + limit_rows(known, plan, bench)


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
    Kind("fsync fails once", _of({"fsync"}), lambda n: _once(n, errno.EIO), 50, 24),
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
    cases = [(one, number) for one in known for number in kind.points(one)]
    if plan.quick:
        cases = random.Random(plan.seed).sample(cases, min(len(cases), kind.quick))
    for one, number in cases:
        scene, root = one.scene, bench.folder / "root"
        scene.prepare(root)
        for name in ("said", "errors"):
            (bench.folder / name).unlink(missing_ok=True)
        said, errors = bench.folder / "said", bench.folder / "errors"
        traced = run_traced(
            lambda scene=scene, root=root: perform(scene, root, errors, said),
            root,
            kind.decide(number),
        )
        wrong = _synced_again(traced.calls, number) if kind.name.startswith("fsync") else None
        wrong = wrong or judged(one, root, bench.folder, traced.exit)
        at = next((c for c in traced.calls if c.number == number), None)
        where = "" if at is None else f"{at.name} {(at.target or at.path).removeprefix(str(root))}"
        wrong = None if wrong is None else f"{scene.name}, {kind.name}, {number} {where}: {wrong}"
        tally.add(wrong, refused=traced.exit != scene.ends)
        if tally.bad >= _ENOUGH:
            return


def _synced_again(calls: Sequence[Call], number: int) -> str | None:
    """A file whose fsync failed is given up: a second fsync may succeed although the data are gone."""
    failed = next((call.path for call in calls if call.number == number), None)
    again = [c for c in calls if c.number > number and c.name == "fsync" and c.path == failed]
    is_file = failed is not None and not Path(failed).is_dir()
    return f"fsync of {failed} was tried again" if again and is_file else None
