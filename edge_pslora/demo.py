"""`edge-pslora demo`: the whole loop on bundled handwritten digits, beside plain sequential LoRA.

A small network is fitted to the first digits; then sessions bring digits it never saw, and at last a
scanner that draws white on black. No sample of an earlier session is stored for training.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_pslora.config import AdaptConfig, default_preset, sequential_preset
from edge_pslora.demo_data import load_digits
from edge_pslora.errors import UsageError
from edge_pslora.evaluation import evaluate
from edge_pslora.pipeline import AdaptResult, adapt
from edge_pslora.progress import Progress
from edge_pslora.workspace import durable

TEST_SHARE = 0.3
FULL_INK = 16
LEARNING_RATE = 2e-3  # both methods; a network this small takes, and needs, larger steps
EPOCHS = 10
BASELINE = "sequential LoRA"
OURS = "PS-LoRA"
MARKER = "made-by-edge-pslora-demo"


@dataclass(frozen=True)
class DemoTask:
    """One session: which digits, and whether ink and paper are swapped."""

    name: str
    digits: tuple[int, ...]
    inverted: bool = False


TASKS = (
    DemoTask("digits 0-3", (0, 1, 2, 3)),
    DemoTask("digits 4-6", (4, 5, 6)),
    DemoTask("digits 7-9", (7, 8, 9)),
    DemoTask("white on black", tuple(range(10)), inverted=True),
)


@dataclass(frozen=True)
class DemoResult:
    """accuracy: method -> test accuracy on each task after the last session; learned: just after
    each task's own session. files: what the last PS-LoRA generation consists of."""

    tasks: tuple[str, ...]
    learned: dict[str, tuple[float, ...]]
    accuracy: dict[str, tuple[float, ...]]
    files: dict[str, str]
    sessions: tuple[dict[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "tasks": list(self.tasks),
            "learned": {name: list(row) for name, row in self.learned.items()},
            "accuracy": {name: list(row) for name, row in self.accuracy.items()},
            "average": {name: float(np.mean(row)) for name, row in self.accuracy.items()},
            "files": self.files,
            "sessions": list(self.sessions),
        }

    def lines(self) -> list[str]:
        """The table for people."""
        methods = list(self.accuracy)
        header = f"  {'test accuracy at the end':<26}" + "".join(f"{m:>18}" for m in methods)
        lines = ["Four sessions, no stored samples, no task identity at test time.", "", header]
        for i, task in enumerate(self.tasks):
            cells = "".join(self._cell(m, i) for m in methods)
            lines.append(f"  {task:<26}{cells}")
        averages = "".join(f"{100 * np.mean(self.accuracy[m]):>9.1f} %       " for m in methods)
        forgot = "".join(f"{100 * self._forgot(m):>9.1f} points  " for m in methods)
        lines += [
            f"  {'average':<26}{averages}".rstrip(),
            f"  {'forgotten since learned':<26}{forgot}".rstrip(),
        ]
        passed = sum(bool(session["promoted"]) for session in self.sessions)
        lines += ["", "  In brackets: just after learning."]
        lines += [f"  {passed} of {len(self.sessions)} PS-LoRA sessions passed the gate.", ""]
        return lines + [f"  {name:<18} {path}" for name, path in self.files.items()]

    def _cell(self, method: str, task: int) -> str:
        now, then = self.accuracy[method][task], self.learned[method][task]
        return f"{100 * now:>9.1f} % ({100 * then:3.0f})"

    def _forgot(self, method: str) -> float:
        pairs = list(zip(self.learned[method], self.accuracy[method], strict=True))[:-1]
        return float(np.mean([then - now for then, now in pairs]))


def run_demo(out: Path, progress: Progress, seed: int = 0) -> DemoResult:
    """Runs both methods on the same sessions, data and seed; everything it makes lies in `out`.

    Raises:
        UsageError: `out` exists and was not made by the demo.
    """
    _prepare(out)
    methods: dict[str, AdaptConfig] = {BASELINE: sequential_preset(), OURS: default_preset()}
    files = _write_tasks(out / "data", seed)
    learned: dict[str, tuple[float, ...]] = {}
    accuracy: dict[str, tuple[float, ...]] = {}
    results: list[AdaptResult] = []
    for method, preset in methods.items():
        # sequential LoRA would be stopped by the gate: the table is to show what it does
        force = method == BASELINE
        config = replace(
            preset,
            gate=replace(preset.gate, force=force),
            train=replace(preset.train, learning_rate=LEARNING_RATE, epochs=EPOCHS, seed=seed),
        )
        workspace = out / method.replace(" ", "-").lower()
        results, just_after = [], []
        for task, (train, test) in zip(TASKS, files, strict=True):
            result = adapt(
                train,
                model=None if results else "auto",
                workspace=workspace,
                task=task.name,
                config=config,
                progress=progress,
            )
            results.append(result)
            just_after.append(evaluate(workspace, test).accuracy)
        learned[method] = tuple(just_after)
        accuracy[method] = tuple(evaluate(workspace, test).accuracy for _, test in files)
    last = results[-1].to_dict()
    return DemoResult(
        tuple(task.name for task in TASKS),
        learned,
        accuracy,
        last["files"],
        tuple(_summary(result.to_dict()) for result in results),
    )


def _summary(facts: dict[str, Any]) -> dict[str, Any]:
    shown = ("generation", "promoted", "reason", "task", "samples", "steps", "accuracy_before")
    more = ("accuracy_after", "retention", "history_bytes", "onnx_max_abs_error", "wall_seconds")
    return {name: facts[name] for name in (*shown, *more)}


def _prepare(out: Path) -> None:
    if out.exists() and any(out.iterdir()) and not (out / MARKER).exists():
        raise UsageError(
            str(out),
            expected="a new folder, or one that an earlier demo made",
            found="other files",
            remedy="choose another --out",
        )
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    durable.write_bytes(out / MARKER, b"the next demo may remove this folder\n")


def _write_tasks(folder: Path, seed: int) -> Sequence[tuple[Path, Path]]:
    """Train and test files of every task; no image is in two of them."""
    images, labels = load_digits()
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(labels))
    test = order[: int(TEST_SHARE * len(order))]
    train = order[len(test) :]
    # half of the training images wait for the last session, which shows every digit
    early, late = train[: len(train) // 2], train[len(train) // 2 :]
    folder.mkdir()
    files = []
    for index, task in enumerate(TASKS):
        parts = []
        for part, rows in (("train", late if task.inverted else early), ("test", test)):
            rows = rows[np.isin(labels[rows], task.digits)]
            path = folder / f"{index + 1}-{part}.npz"
            _write_npz(path, images[rows], labels[rows], task.inverted)
            parts.append(path)
        files.append((parts[0], parts[1]))
    return files


def _write_npz(
    path: Path, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], inverted: bool
) -> None:
    ink = images.astype(np.float32) / FULL_INK
    np.savez(path, x=(1.0 - ink) if inverted else ink, y=labels)
