"""Sessions that would make the model worse, and honest ones, against the gate. And learning that breaks.

Every stream starts with clean sessions on handwritten digits, in one of the ways of STARTS after the
other; then comes one session that is poisoned, its held-out part too, or one that is honest. What a
model is worth is measured on clean test images that nothing of the tool sees: worse is a loss of more
than a point on what was known that a paired exact test finds significant. What was refused is measured
as well: it says how many would have been.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import edge_pslora
from edge_pslora.core.gate import GateDecision, worse_p_value
from edge_pslora.data.options import ReadOptions
from edge_pslora.errors import DataError
from edge_pslora.exporters.run import open_onnx
from edge_pslora.pipeline import judging
from edge_pslora.workspace import layout
from edge_pslora.workspace.workspace import Workspace
from tests.export_kit import keep_what_is_loaded, prepare_exports_once
from tests.torture import drifting, faulty_steps
from tests.torture.plan import Plan, Row
from tests.torture.poisons import HONEST, POISONED, STARTS, Digits, Start, digits_for, write_session

MARGIN = 0.01  # a point, as --max-forgetting allows
LEVEL = 0.05
REFUSALS = 0.05  # share of honest sessions that may be refused
SEEDS = 20
FIRST_SEED = 1000  # the gate's levels were set on seeds below 100
# labels that could be true: known digits that are called otherwise from now on, new ones that are all
# called alike. Only the anchors speak against them, and fifty do not show every loss of a point.
COULD_BE_TRUE = {
    "labels rotated": 0.1,
    "one label for all": 0.1,
    "one row with noise, wrong label": 0.1,
}


@dataclass
class Count:
    """sessions: tried; refused; worse: by the clean test, promoted or not; passed: worse and promoted;
    wronged: refused and not worse."""

    sessions: int = 0
    refused: int = 0
    worse: int = 0
    passed: int = 0
    wronged: int = 0
    starts: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # wronged, by start


def run(plan: Plan) -> list[Row]:
    prepare_exports_once()
    counts: dict[str, Count] = defaultdict(Count)
    seeds = plan.size(SEEDS, 1)
    for number in range(seeds):
        name, seed = list(STARTS)[number % len(STARTS)], FIRST_SEED + plan.seed + number
        folder = plan.scratch / f"{seed} {name}"
        digits = begin(folder, STARTS[name], seed)
        for kind in POISONED | HONEST:
            attempt(folder, digits, kind, name, counts[kind])
        shutil.rmtree(folder)
    return [*gate_rows(counts, seeds), *faulty_steps.rows(plan), *drifting.rows(plan)]


def gate_rows(counts: Mapping[str, Count], wanted: int) -> list[Row]:
    """wanted: sessions of each kind."""
    rows = []
    for kind in POISONED:
        if kind in counts:
            count = counts[kind]
            note = f"{count.refused} refused; {count.worse} were worse"
            allowed = COULD_BE_TRUE.get(kind, 0) * count.sessions
            what = f"{kind}: worse models promoted"
            rows.append(Row(what, count.sessions, count.passed, wanted, allowed, note))
    sessions = wronged = 0
    for kind in HONEST:
        if kind in counts:
            count = counts[kind]
            note = f"{count.worse} were worse, {count.refused - count.wronged} of these refused"
            where = ", ".join(f"{n} after {start}" for start, n in count.starts.items())
            note += f"; wronged: {where}" if where else ""
            # few cases of a kind: twice the share that is allowed of all
            allowed = max(1.0, 2 * REFUSALS * count.sessions)
            what = f"{kind}: honest, no worse, refused"
            rows.append(Row(what, count.sessions, count.wronged, wanted, allowed, note))
            sessions, wronged = sessions + count.sessions, wronged + count.wronged
    if sessions:
        what, note = "all honest sessions: no worse, refused", f"{wronged / sessions:.1%}"
        rows.append(Row(what, sessions, wronged, wanted, REFUSALS * sessions, note))
    return rows


def begin(folder: Path, start: Start, seed: int) -> Digits:
    """A workspace that has learned what comes before, in folder / "w"."""
    folder.mkdir()
    digits = digits_for(start, seed)
    for number, (x, y) in enumerate(digits.past):
        data = write_session(folder / f"{number}.npz", x, y)
        first = "auto" if number == 0 else None
        # the start is given: it is not what is tried here
        edge_pslora.adapt(data, model=first, workspace=folder / "w", config=FORCED)
    keep_what_is_loaded()
    return digits


def attempt(folder: Path, digits: Digits, kind: str, start: str, count: Count) -> None:
    """One session of this kind, on a copy of what was begun."""
    copy = folder / "copy"
    shutil.copytree(folder / "w", copy)
    x, y = (POISONED | HONEST)[kind](*digits.next, digits.seed)
    data = write_session(folder / "next.npz", x, y)
    _try(copy, data, digits, kind, start, count)
    shutil.rmtree(copy)


FORCED = replace(
    edge_pslora.AdaptConfig(), gate=replace(edge_pslora.AdaptConfig().gate, force=True)
)


def _try(workspace: Path, data: Path, digits: Digits, kind: str, start: str, count: Count) -> None:
    old = Workspace.open(workspace).published(None)
    count.sessions += 1
    try:
        result = edge_pslora.adapt(
            data, workspace=workspace, read=ReadOptions(keep_duplicates="repeated" in kind)
        )
    except DataError:  # refused before it was learned from
        count.refused += 1
        return
    before = _right(old.file(layout.ONNX), old.manifest.labels, digits)
    after = _right(result.folder / layout.ONNX, old.manifest.labels, digits)
    worse = sum(before) - sum(after) > MARGIN * len(before)
    worse &= worse_p_value(before, after) < LEVEL
    count.worse += worse
    count.passed += worse and result.promoted
    count.refused += not result.promoted
    if not result.promoted and not worse:
        count.wronged += 1
        count.starts[start] += 1


def _right(model: Path, labels: tuple[str, ...], digits: Digits) -> list[float]:
    """1.0 / 0.0 for each clean test image of what was known; labels that are new do not compete."""
    logits = open_onnx(model).run({"x": digits.test_images})
    answers = logits[:, : len(labels)].argmax(axis=1)
    wanted = [labels.index(str(label)) for label in digits.test_labels]
    return [float(a == w) for a, w in zip(answers.tolist(), wanted, strict=True)]


def _decides(promote: bool) -> Callable[[], None]:
    real = judging.decide

    def plant() -> None:
        def decide(*arguments: Any, **options: Any) -> GateDecision:
            return replace(real(*arguments, **options), promote=promote)

        judging.decide = decide

    return plant


def _trusts_labels() -> None:
    """The gate as it was before it asked what speaks for a session's labels."""
    judging._evidence = lambda *arguments: None


PLANTS: Mapping[str, Callable[[], None]] = {
    "promotes everything": _decides(True),
    "refuses everything": _decides(False),
    "trusts labels": _trusts_labels,
    **faulty_steps.PLANTS,
    **drifting.PLANTS,
}
