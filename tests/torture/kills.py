"""Killed at every mutating system call, at random, twice in a row, and while it trains.

After each kill: what serves is the old generation or the new one, whole; outputs are old, new or
absent; the same command once more ends as an uninterrupted run does and leaves nothing behind.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.torture import kill_plants, kill_resume
from tests.torture.forked import fast_folder, in_processes
from tests.torture.kill_once import Ends, Found, Kill, attempt, snapshot, uninterrupted
from tests.torture.kill_scenes import Materials, Scene, learning_scenes, light_scenes
from tests.torture.kill_scenes_apply import apply_scenes
from tests.torture.plan import Plan, Row
from tests.torture.tracer import permitted

PLANTS = kill_plants.PLANTS
_RANDOM_LIGHT, _RANDOM_LEARNING = 9_700, 300
_READY_SECONDS = 120.0
_SAID = {"mixed": "mixed", "lost": "lost", "unhealed": "not healed by one run"}


def run(plan: Plan) -> list[Row]:
    if not permitted():
        return [Row("kills", 0, 0, wanted=1, note="skipped: ptrace is not permitted here")]
    with fast_folder(plan) as folder:
        made = Materials(plan.shared or folder / "made")
        return in_processes(
            [partial(_learning, plan, made, folder), partial(_light, plan, made, folder)], folder
        )


def _learning(plan: Plan, made: Materials, folder: Path) -> list[Row]:
    """What needs torch; it makes what both parts start from."""
    only, known = kill_plants.only(), dict[str, Ends]()
    if not made.ready:
        made.make()
    scratch = folder / "learning"
    scratch.mkdir()
    scenes = [scene for scene in learning_scenes(made) if only is None or scene.name in only]
    rows = _every_call(plan, scenes[:1], known, scratch, plan.size(0, 1))
    rows += _every_call(plan, scenes[1:], known, scratch, plan.size(0, 1))
    if only is None:
        rows += _at_random(plan, scenes[1:], known, scratch, plan.size(_RANDOM_LEARNING, 1))
    if only is None or "resume" in only:
        rows += kill_resume.rows(plan, made, scratch)
    return rows


def _light(plan: Plan, made: Materials, folder: Path) -> list[Row]:
    """What runs on a device; nothing here has loaded torch, so that a fork is cheap."""
    end = time.monotonic() + _READY_SECONDS
    while not made.ready:
        if time.monotonic() > end:
            raise TimeoutError("what the scenes start from was not made")
        time.sleep(0.05)
    scratch = folder / "light"
    scratch.mkdir()
    only, known = kill_plants.only(), dict[str, Ends]()
    scenes = [
        s for s in [*light_scenes(made), *apply_scenes(made)] if only is None or s.name in only
    ]
    rows = _every_call(plan, scenes, known, scratch, plan.size(0, 2 if only is None else 20))
    if only is None:
        rows += _at_random(plan, scenes, known, scratch, plan.size(_RANDOM_LIGHT, 6))
    return rows


def _every_call(
    plan: Plan, scenes: Sequence[Scene], known: dict[str, Ends], scratch: Path, most: int
) -> list[Row]:
    """One row a scene. most: so many of its calls, evenly; 0: all."""
    rows = []
    for scene in scenes:
        known[scene.name] = ends = _ends(plan, scene, scratch)
        step = -(-ends.calls // most) if most else 1
        first = 1 + (step // 2 + plan.seed) % step
        kills = [Kill(number) for number in range(first, ends.calls + 1, step)]
        tries = [(f"call {kill.number}", scene, ends, [kill]) for kill in kills]
        found = _tried(tries, scratch)
        wrong = [f"{name}: {one.all()[0]}" for name, one in found if one.all()]
        note, bad = wrong[0] if wrong else f"{ends.calls} calls", len(wrong)
        rows.append(
            Row(f"{scene.name}: killed at each call", len(kills), bad, len(kills), note=note)
        )
    return rows


def _at_random(
    plan: Plan, scenes: Sequence[Scene], known: dict[str, Ends], scratch: Path, count: int
) -> list[Row]:
    """count: kills, at a random call or a random time; one try in three is killed again."""
    rng = random.Random(plan.seed)
    tries: list[_Try] = []
    total = 0
    while total < count:
        scene = rng.choice(scenes)
        ends = known[scene.name]
        times = min(rng.choice((1, 1, 1, 1, 2, 3)), scene.most_kills)
        kills = [_random_kill(rng, ends) for _ in range(times)]
        when = ", ".join(f"call {k.number}" if k.number else f"{k.seconds:.3f} s" for k in kills)
        tries.append((f"try {len(tries)}, {scene.name}, {when}", scene, ends, kills))
        total += times
    found = _tried(tries, scratch)
    kind = "random kills of those with torch" if scenes[0].dated else "random kills"
    rows = []
    for what in ("mixed", "lost", "unhealed"):
        wrong = [f"{name}: {getattr(one, what)[0]}" for name, one in found if getattr(one, what)]
        note = wrong[0] if wrong else ""
        rows.append(Row(f"{kind}: {_SAID[what]}", total, len(wrong), count, note=note))
    return rows


def _random_kill(rng: random.Random, ends: Ends) -> Kill:
    if rng.random() < 0.7:
        return Kill(number=rng.randint(1, ends.calls))
    return Kill(seconds=rng.uniform(0, 1.1 * ends.seconds))


_Try = tuple[str, Scene, Ends, list[Kill]]


def _tried(tries: Sequence[_Try], scratch: Path) -> list[tuple[str, Found]]:
    """Of each try its name and what was wrong."""
    return [
        (name, attempt(scene, ends, kills, scratch / "tried")) for name, scene, ends, kills in tries
    ]


def _ends(plan: Plan, scene: Scene, scratch: Path) -> Ends:
    """Run once in this process before: what is imported then need not be in each child."""
    if scene.dated:  # those ran here when what scenes start from was made
        return uninterrupted(scene, scratch, timed=not plan.quick)
    folder = scene.copied(scratch / "warm")
    scene.run(folder)
    warm = snapshot(folder)
    shutil.rmtree(folder)
    return uninterrupted(scene, scratch, timed=not plan.quick, earlier=warm)
