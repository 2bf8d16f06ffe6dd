"""`edge-pslora apply`: a signed bundle becomes the generation that serves, on trial. No torch.

The order, each step durable before the next: who is trusted (updates/trusted/), the state's class and
clock floor, a workspace where there was none, the files in staging/, the local gate, the generation,
the trial in updates/state.json, the pointer, each health check counted before it begins, the end of
the trial. A process killed anywhere leaves the old or the new generation serving, whole, and the same
command goes on to the same end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edge_pslora.device import local_gate, receive, trial
from edge_pslora.device.health import HealthCheck
from edge_pslora.device.receive import Offer
from edge_pslora.device.trial import Settled
from edge_pslora.errors import EdgePsloraError, GateRefusedError, UsageError
from edge_pslora.signing import trusted
from edge_pslora.signing.sources import Source, open_source
from edge_pslora.update.bundle import DEFAULT_DEVICE_CLASS, is_device_class
from edge_pslora.workspace import durable, layout, staging
from edge_pslora.workspace.generation import Generation, numbers
from edge_pslora.workspace.lock import writer_lock
from edge_pslora.workspace.manifest import Manifest
from edge_pslora.workspace.update_state import UpdateState, read_state, replace_state
from edge_pslora.workspace.workspace import Workspace

_AREA = "trusted"  # inside staging/: where python-tuf works


@dataclass(frozen=True)
class Request:
    """source: a folder, a .tar, an address, or None to go on with what is pending. root: needed the
    first time; device_class: pinned then. check: None and not `accept`: a trial stays open."""

    workspace: Path
    source: str | None = None
    root: Path | None = None
    device_class: str | None = None
    check: HealthCheck | None = None
    accept: bool = False


@dataclass(frozen=True)
class Report:
    """What came of it. applied: this call brought a new generation. generation: the one that serves.
    trial: "none", "kept" or "open"; attempts: health checks begun. bundle: counter, kind, generation
    at the publisher's. serves: whether the bundle's generation serves, or one learned from it; None
    without a bundle. gate: anchors and what both models reach on them."""

    applied: bool
    generation: int | None
    trial: trial.Outcome
    reason: str
    attempts: int = 0
    counter: int = 0
    bundle: Mapping[str, Any] | None = None
    serves: bool | None = None
    gate: Mapping[str, Any] | None = None
    problems: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        return {
            "applied": self.applied,
            "generation": self.generation,
            "trial": self.trial,
            "reason": self.reason,
            "attempts": self.attempts,
            "counter": self.counter,
            "bundle": None if self.bundle is None else dict(self.bundle),
            "serves": self.serves,
            "gate": None if self.gate is None else dict(self.gate),
            "problems": list(self.problems),
        }


def apply(request: Request, say: Callable[[str], None] = lambda line: None) -> Report:
    """Take a bundle, or go on with what is pending.

    Raises:
        GateRefusedError: the local gate, or three health checks; the model before serves.
        BundleError: not signed, expired, old, damaged or made for others; nothing was changed but who
            is trusted.
        UsageError: --root is missing the first time, or a trial is still open.
        WorkspaceLockedError: another process writes to the workspace.
    """
    path = request.workspace
    if request.source is None and not Workspace.exists(path):
        raise UsageError(
            "--from",
            expected="a bundle, since there is no workspace here yet",
            found="none",
            remedy="give a folder, a .tar file or an http address",
        )
    with writer_lock(path):
        try:
            pending = _settle_pending(request, say)
            if request.source is None:
                return _gone_on(request, pending)
            with open_source(request.source) as source:
                return _take(request, source, pending, say)
        finally:
            _tidy(path)


def _tidy(path: Path) -> None:
    """What killed runs of this command left, and nothing of a run that is to be resumed.

    The work is done, or has failed already; what cannot be removed now, the next run removes.
    """
    if not path.is_dir():
        return
    with suppress(EdgePsloraError):
        staging.forget_published(path, numbers(path))
        for name in (layout.CURRENT, layout.WORKSPACE_FILE):
            durable.remove_leftovers(path, name)
        if (path / layout.UPDATES).is_dir():
            durable.remove_leftovers(path / layout.UPDATES, layout.UPDATE_STATE)


def _settle_pending(request: Request, say: Callable[[str], None]) -> Settled | None:
    """What an earlier call left open; None where there is no state yet."""
    state = read_state(request.workspace)
    if state is None:
        return None
    if request.device_class is not None and request.device_class != state.device_class:
        raise UsageError(
            "--device-class",
            expected=f"{state.device_class}, as this device was set up",
            found=ascii(request.device_class)[:80],
            remedy="leave it out",
        )
    if state.trial is None or not Workspace.exists(request.workspace):
        return Settled("none", state)
    workspace = Workspace.open(request.workspace)
    return trial.settle(workspace, state, request.check, accept=request.accept, say=say)


def _gone_on(request: Request, pending: Settled | None) -> Report:
    """The answer of a call without a source."""
    workspace = Workspace.open(request.workspace)
    if pending is None or pending.outcome == "none":
        return _report(workspace, None, "nothing is pending")
    if pending.outcome == "went back":
        raise _went_back(workspace, pending)
    words = {
        "kept": "its health check succeeded" if pending.attempts else "taken without a check",
        "open": "on trial: end it with --health-check or --no-check, or roll back",
    }
    return _report(workspace, pending, words[pending.outcome])


def _take(
    request: Request, source: Source, pending: Settled | None, say: Callable[[str], None]
) -> Report:
    path = request.workspace
    state = None if pending is None else pending.state
    if state is None:
        state = UpdateState(_first_class(request))
    offer = _verified(request, source, state)
    floor = max(state.clock_floor, offer.bundle.signed_at)
    if pending is None or floor != state.clock_floor:
        state = replace(state, clock_floor=floor)
        replace_state(path, state)
    if (done := _known(request, offer, state, pending)) is not None:
        return done
    receive.check_fit(offer, Workspace.open(path) if Workspace.exists(path) else None)
    found, judged = _published(offer, path, state)
    workspace = Workspace.open(path)
    state = trial.begin(workspace, state, found, offer.bundle.counter)
    settled = trial.settle(workspace, state, request.check, accept=request.accept, say=say)
    if settled.outcome == "went back":
        raise _went_back(workspace, settled)
    words = {"kept": "applied", "open": "applied, and on trial until a health check succeeds"}
    report = _report(workspace, settled, words[settled.outcome])
    gate = None if judged is None else judged.to_dict()
    return replace(report, applied=True, serves=True, bundle=offer.facts, gate=gate)


def _first_class(request: Request) -> str:
    name = DEFAULT_DEVICE_CLASS if request.device_class is None else request.device_class
    if not is_device_class(name):
        raise UsageError(
            "--device-class",
            expected="at most 64 letters, digits, '_', '.' and '-'",
            found=ascii(name)[:80],
            remedy="give the name that bundles for this device are made with",
        )
    return name


def _verified(request: Request, source: Source, state: UpdateState) -> Offer:
    """The bundle, checked with a private copy of what is trusted; what is trusted then is kept."""
    path = request.workspace
    folder = path / layout.UPDATES / layout.TRUSTED
    trust = trusted.load_trust(folder, request.root)
    with _private_area(path) as private:
        verified = trusted.verify(source, trust, private, state.clock_floor)
    offer = receive.read_offer(source, verified)
    receive.check_class(offer, state.device_class)
    receive.check_counter(offer, state)
    trusted.publish(folder, verified)
    return offer


@contextmanager
def _private_area(path: Path) -> Iterator[Path]:
    area, trash = path / layout.STAGING / _AREA, path / layout.STAGING / layout.TRASH
    durable.make_folder(area.parent)
    if area.exists():
        durable.remove_folder(area, trash)
    durable.make_folder(area)
    try:
        yield area
    finally:
        durable.remove_folder(area, trash)


def _known(
    request: Request, offer: Offer, state: UpdateState, pending: Settled | None
) -> Report | None:
    """The answer for a bundle that was taken before; None for a new one."""
    counter = offer.bundle.counter
    if counter == state.failed_counter:
        problems = () if pending is None else pending.problems
        raise GateRefusedError(
            offer.where,
            expected="a bundle that was not refused here before",
            found=f"counter {counter}, which this device refused"
            + (f": {problems[-1]}" if problems else ""),
            remedy="the model before serves; get a newer bundle",
            figures={"counter": counter, "failed_counter": state.failed_counter},
        )
    if counter == state.counter:
        workspace = Workspace.open(request.workspace)
        serves = _serves(workspace, counter)
        words = "already taken; nothing to do"
        if state.trial is not None:
            words = "already taken, and on trial until a health check succeeds"
        elif not serves:
            words = "already taken, and gone back from since; nothing to do"
        return replace(_report(workspace, pending, words), serves=serves, bundle=offer.facts)
    if state.trial is not None:
        raise UsageError(
            str(request.workspace),
            expected="no trial when the next bundle comes",
            found=f"generation {state.trial.generation} on trial",
            remedy="end it with --health-check COMMAND or --no-check, or roll back",
        )
    return None


def _serves(workspace: Workspace, counter: int) -> bool:
    """Whether the generation of that bundle serves, or one that sessions here made from it."""
    found = workspace.current()
    while found is not None:
        taken = found.manifest.metrics.get("bundle")
        if isinstance(taken, Mapping) and taken.get("counter") == counter:
            return True
        parent = found.manifest.parent
        if parent is None or parent not in workspace.generations():
            return False
        found = workspace.generation(parent)
    return False


def _published(
    offer: Offer, path: Path, state: UpdateState
) -> tuple[Generation, local_gate.Judged | None]:
    """The bundle's generation, judged and published, not serving yet."""
    # not above: a timer that finds nothing new needs none of it
    from edge_pslora.device import assemble

    if Workspace.exists(path):
        workspace = Workspace.open(path)
    else:
        receive.need_space(offer, path)
        workspace = assemble.create_workspace(offer, path)
    if (found := assemble.generation_of(offer, workspace)) is not None:
        return found, None
    receive.need_space(offer, workspace.path)
    current = workspace.current()
    staged = workspace.begin(offer.digest)
    assemble.assemble(offer, workspace, staged)
    labels = offer.bundle.manifest.labels
    try:
        judged = local_gate.judge(staged.folder, labels, workspace.header, current)
    except GateRefusedError as problem:
        workspace.refuse(staged.folder)
        if not isinstance(problem, local_gate.NotJudgedError):
            failed = max(state.failed_counter, offer.bundle.counter)
            replace_state(workspace.path, replace(state, failed_counter=failed))
        serving = None if current is None else current.number
        problem.figures |= {"applied": False, "generation": serving, "bundle": offer.facts}
        raise
    number = 0 if current is None else current.number
    content = _manifest(offer, staged.number, number or None)
    return workspace.publish(staged.folder, content, serve=False), judged


def _manifest(offer: Offer, number: int, parent: int | None) -> Manifest:
    """The publisher's, but for its place among this device's generations."""
    published = offer.bundle.manifest
    metrics = {**published.metrics, "bundle": offer.facts}
    return replace(
        published,
        number=number,
        parent=parent,
        metrics=metrics,
        counter=offer.bundle.counter,
        files={},
    )


def _report(workspace: Workspace, settled: Settled | None, reason: str) -> Report:
    current = workspace.current()
    state = read_state(workspace.path)
    return Report(
        applied=False,
        generation=None if current is None else current.number,
        trial="none" if settled is None else settled.outcome,
        reason=reason,
        attempts=0 if settled is None else settled.attempts,
        counter=0 if state is None else state.counter,
        problems=() if settled is None else settled.problems,
    )


def _went_back(workspace: Workspace, settled: Settled) -> GateRefusedError:
    current = workspace.current()
    serving = None if current is None else current.number
    failed = settled.trial
    number = 0 if failed is None else failed.generation
    why = settled.problems[-1] if settled.problems else "it did not pass its trial"
    return GateRefusedError(
        str(workspace.path),
        expected=f"generation {number} to pass its health check",
        found=f"{settled.attempts} of {trial.MOST_ATTEMPTS} tries failed: {why}",
        remedy=f"generation {serving} serves again" if serving else "nothing serves, as before",
        figures={
            "applied": False,
            "generation": serving,
            "failed_generation": number,
            "attempts": settled.attempts,
            "counter": settled.state.counter,
            "problems": list(settled.problems),
        },
    )
