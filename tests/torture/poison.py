"""Sessions that would make the model worse, and honest ones, against the gate. And learning that breaks.

Every stream starts with clean sessions on handwritten digits; then comes one session that is poisoned,
its held-out part too, or one that is honest. What a model is worth is measured on clean test images
that nothing of the tool sees: worse is a loss of more than a point on what was known that a paired
exact test finds significant. What was refused is measured as well: it says how many would have been.
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
from tests.export_kit import prepare_exports_once
from tests.torture import drifting, faulty_steps
from tests.torture.plan import Plan, Row
from tests.torture.poisons import HONEST, POISONED, STARTS, Digits, Start, digits_for, write_session

MARGIN = 0.01  # a point, as --max-forgetting allows
LEVEL = 0.05
REFUSALS = 0.05  # share of honest sessions that may be refused
QUICK_STARTS = ("two sessions", "new classes")


@dataclass
class Count:
    """sessions: tried; refused; worse: by the clean test, promoted or not; passed: worse and promoted."""

    sessions: int = 0
    refused: int = 0
    worse: int = 0
    passed: int = 0
    starts: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # refused, by start


def run(plan: Plan) -> list[Row]:
    prepare_exports_once()
    counts: dict[str, Count] = defaultdict(Count)
    seeds = plan.size(20, 1)
    for name, start in STARTS.items():
        if plan.quick and name not in QUICK_STARTS:
            continue
        for seed in range(plan.seed, plan.seed + seeds):
            _stream(plan.scratch / f"{seed} {name}", name, start, seed, counts)
    rows = [_poisoned(kind, counts[kind], seeds) for kind in POISONED]
    rows += [_honest(kind, counts[kind], seeds) for kind in HONEST]
    every = [counts[kind] for kind in HONEST]
    sessions, refused = sum(c.sessions for c in every), sum(c.refused for c in every)
    note = f"{refused / max(sessions, 1):.1%}"
    rows.append(
        Row("honest sessions refused, all", sessions, refused, seeds, REFUSALS * sessions, note)
    )
    return [*rows, *faulty_steps.rows(plan), *drifting.rows(plan)]


def _poisoned(kind: str, count: Count, seeds: int) -> Row:
    note = f"refused {count.refused}; {count.worse} were worse"
    return Row(f"{kind}: worse models promoted", count.sessions, count.passed, seeds, 0, note)


def _honest(kind: str, count: Count, seeds: int) -> Row:
    """Few cases: one refusal is within the share that is allowed of all."""
    where = ", ".join(f"{n} after {start}" for start, n in count.starts.items())
    allowed = max(1.0, 2 * REFUSALS * count.sessions)
    return Row(f"{kind}: honest, refused", count.sessions, count.refused, seeds, allowed, where)


def _stream(folder: Path, name: str, start: Start, seed: int, counts: dict[str, Count]) -> None:
    """The start once; then each kind of session on a copy of it."""
    folder.mkdir()
    digits = digits_for(start, seed)
    for number, (x, y) in enumerate(digits.past):
        data = write_session(folder / f"{number}.npz", x, y)
        first = "auto" if number == 0 else None
        # the start is given: it is not what is tried here
        edge_pslora.adapt(data, model=first, workspace=folder / "w", config=FORCED)
    for kind, make in (POISONED | HONEST).items():
        copy = folder / "copy"
        shutil.copytree(folder / "w", copy)
        x, y = make(*digits.next, seed)
        data = write_session(folder / "next.npz", x, y)
        _try(copy, data, digits, kind, name, counts[kind])
        shutil.rmtree(copy)
    shutil.rmtree(folder)


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
    if not result.promoted:
        count.refused += 1
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
