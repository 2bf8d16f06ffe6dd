"""A new generation on trial: it serves, its health is checked, and it stays or the one before comes back.

Each step is noted in updates/state.json before it is taken, so that whoever comes after a kill knows
the one way on (workspace/update_state.py). The caller holds the writer's lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from edge_pslora.device.health import HealthCheck, run_check
from edge_pslora.errors import WorkspaceError
from edge_pslora.workspace import layout
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.pointer import NOTHING, Pointer, read_pointer, replace_pointer
from edge_pslora.workspace.update_state import Trial, UpdateState, going_back, replace_state
from edge_pslora.workspace.workspace import Workspace

MOST_ATTEMPTS = 3
Outcome = Literal["none", "kept", "went back", "open"]


@dataclass(frozen=True)
class Settled:
    """What became of a trial. trial: it, as it was; attempts: health checks begun in all; problems:
    why checks failed, of this process's tries."""

    outcome: Outcome
    state: UpdateState
    trial: Trial | None = None
    attempts: int = 0
    problems: tuple[str, ...] = ()


def begin(
    workspace: Workspace, state: UpdateState, generation: Generation, counter: int
) -> UpdateState:
    """Note that `generation`, published, is to serve on trial. It does not serve yet; see settle."""
    current = read_pointer(workspace.path).number
    trial = Trial(generation.number, current or None, counter)
    state = replace(state, counter=max(state.counter, counter), trial=trial)
    replace_state(workspace.path, state)
    return state


def settle(
    workspace: Workspace,
    state: UpdateState,
    check: HealthCheck | None,
    *,
    accept: bool,
    say: Callable[[str], None],
) -> Settled:
    """Go on with whatever trial there is, as far as it goes.

    Args:
        check: None leaves a healthy trial open, unless `accept`, which ends it without a check.
        say: told about each failed check.

    Raises:
        WorkspaceError: the generation to go back to is damaged; the pointer stays.
    """
    trial = state.trial
    if trial is None:
        return Settled("none", state)
    if trial.going_back:
        return _back(workspace, state, trial, ())
    try:
        _point_to(workspace, trial.generation)
    except WorkspaceError as damage:  # it was whole when it was published: the disk lost it since
        return _back(workspace, going_back(state, trial.previous), trial, (str(damage),))
    if accept:
        return _keep(workspace, state, trial)
    if check is None and trial.attempts < MOST_ATTEMPTS:
        return Settled("open", state, trial, trial.attempts)
    problems: list[str] = []
    while check is not None and trial.attempts < MOST_ATTEMPTS:
        # counted first: a check that takes the device down with it has failed too
        trial = replace(trial, attempts=trial.attempts + 1)
        state = replace(state, trial=trial)
        replace_state(workspace.path, state)
        problem = run_check(check, _variables(workspace, trial.generation))
        if problem is None:
            return _keep(workspace, state, trial)
        problems.append(problem)
        say(f"health check {trial.attempts} of {MOST_ATTEMPTS} failed: {problem}")
        if trial.attempts < MOST_ATTEMPTS:
            time.sleep(check.interval)
    return _back(workspace, going_back(state, trial.previous), trial, tuple(problems))


def _keep(workspace: Workspace, state: UpdateState, trial: Trial) -> Settled:
    state = replace(state, trial=None)
    replace_state(workspace.path, state)
    return Settled("kept", state, trial, trial.attempts)


def _back(
    workspace: Workspace, state: UpdateState, trial: Trial, problems: tuple[str, ...]
) -> Settled:
    """`state` says that the trial goes back, and to where: first on disk, then the pointer."""
    replace_state(workspace.path, state)
    to = trial.previous if state.trial is None else state.trial.previous
    _point_to(workspace, to)
    state = replace(state, trial=None)
    replace_state(workspace.path, state)
    return Settled("went back", state, replace(trial, previous=to), trial.attempts, problems)


def _point_to(workspace: Workspace, number: int | None) -> None:
    """Move the pointer, after every file of the generation was checked; None: nothing serves."""
    if _pointer(workspace).number == (number or 0):
        return
    target = NOTHING
    if number is not None:
        generation = workspace.generation(number)
        generation.verify()
        target = generation.pointer()
    replace_pointer(workspace.path, target)


def _pointer(workspace: Workspace) -> Pointer:
    """A damaged one is as one to a generation that nobody has: it is written again."""
    try:
        return read_pointer(workspace.path)
    except WorkspaceError:
        return Pointer(-1, "")


def _variables(workspace: Workspace, number: int) -> dict[str, str]:
    folder = layout.generation_folder(workspace.path.absolute(), number)
    return {
        "EDGE_PSLORA_WORKSPACE": str(workspace.path.absolute()),
        "EDGE_PSLORA_GENERATION": str(number),
        "EDGE_PSLORA_MODEL": str(folder / layout.ONNX),
    }
