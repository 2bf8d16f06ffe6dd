"""Runs killed at random steps of their training, one to three times: the same bytes in the end."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.torture.kill_once import snapshot
from tests.torture.kill_scenes import DATED, Materials, Scene
from tests.torture.plan import Plan, Row

# 27 steps an epoch, and a checkpoint after every 50 steps
_STEPS = 108
_LONG = ("--epochs", "4", "--batch-size", "2", "--rank", "2", "--json")
_COMPARED = (
    *("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "model.safetensors"),
    *("history.safetensors", "head.safetensors", "anchor.safetensors", "model.onnx"),
)


def rows(plan: Plan, made: Materials, scratch: Path) -> list[Row]:
    rng = random.Random(plan.seed)
    start = made.start("resume", {"d.npz": "2.npz", "w": "after-1"})
    runs, kills, bad, note = plan.size(50, 2), 0, 0, ""
    wanted: dict[str, dict[str, str]] = {}
    for number in range(runs):
        seed = str(number % plan.size(5, 1))
        argv = ("adapt", "d.npz", "--workspace", "w", "--seed", seed, *_LONG)
        scene = Scene("resume", start, argv, dated=DATED)
        if seed not in wanted:
            wanted[seed] = _whole(scene, scratch / "whole")
        folder = scene.copied(scratch / "resumed")
        for again in range(rng.choice((1, 2, 3))):
            # the first time behind a checkpoint; later, of steps that a resumed run may not make
            code = _in_child(scene, folder, rng.randint(1 if again else 51, _STEPS))
            if code not in (0, -signal.SIGKILL):
                raise AssertionError(f"a killed run ended with {code}")
            kills += code != 0
            if code == 0:
                break
        else:
            if _in_child(scene, folder, None) != 0:
                raise AssertionError("the last run failed")
        found = _compared(folder)
        if found != wanted[seed]:
            other = sorted(name for name in _COMPARED if found.get(name) != wanted[seed][name])
            note = note or f"run {number}: {', '.join(other)}"
            bad += 1
        shutil.rmtree(folder)
    note = note or f"{kills} kills"
    return [Row("killed in training and resumed: other bytes", runs, bad, runs, note=note)]


def _whole(scene: Scene, folder: Path) -> dict[str, str]:
    scene.copied(folder)
    if _in_child(scene, folder, None) != 0:
        raise AssertionError(f"{scene.argv}: {scene.run(folder)[1]}")
    found = _compared(folder)
    shutil.rmtree(folder)
    return found


def _compared(folder: Path) -> dict[str, str]:
    state = snapshot(folder / "w/generations/000002")
    return {name: state.get(name, "missing") for name in _COMPARED}


def _in_child(scene: Scene, folder: Path, step: int | None) -> int:
    """The exit code; killed before the optimiser makes that step of the run."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            if step is not None:
                _kill_at_step(step)
            code = scene.run(folder)[0]
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _kill_at_step(step: int) -> None:
    from edge_pslora.training.adamw import AdamW

    real: Callable[..., Any] = AdamW.step
    made = iter(range(1, 1 << 30))

    def killing(self: Any, *arguments: Any, **options: Any) -> Any:
        if next(made) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *arguments, **options)

    AdamW.step = killing  # type: ignore[method-assign]
