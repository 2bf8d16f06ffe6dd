"""Before a bundle's model may serve: it runs here, and is no worse than what serves, on own samples.

An intact, well-signed model can be worse on this device's data. It runs in a child process with limits
on memory and time, since a graph from outside can ask for any of both.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_pslora.config import GateConfig
from edge_pslora.errors import EdgePsloraError, GateRefusedError
from edge_pslora.workspace import layout
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.header import Header

SECONDS = 600
MEMORY = 1 << 30  # bytes beside a few times the model's own size
_TIMES = 4


@dataclass(frozen=True)
class Judged:
    """samples: the anchors that were judged by; else 0, and note says why. before, after: the mean score
    of the serving and the new model; p: how likely chance alone does such harm."""

    samples: int
    before: float | None = None
    after: float | None = None
    p: float | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "anchors": self.samples,
            "anchor_before": self.before,
            "anchor_after": self.after,
            "anchor_p": self.p,
            "note": self.note,
        }


class NotJudgedError(GateRefusedError):
    """It broke a limit or the process died: refused this time, which says nothing about the next."""


def judge(
    staged: Path, labels: tuple[str, ...], header: Header, current: Generation | None
) -> Judged:
    """Run staged/model.onnx against the serving generation's, with its anchors where it has some.

    Raises:
        GateRefusedError: it does not run, its outputs are not finite or not those of its labels, or it
            is significantly worse than what serves.
        NotJudgedError: it took too much time or memory, or ended its process.
        EdgePsloraError: there is too little memory here to try it: it says nothing of the model.
        WorkspaceError: the serving generation is damaged.
    """
    files = [staged / name for name in (layout.ONNX, layout.ONNX_DATA)]
    old, anchors = None, None
    if current is not None and current.has(layout.ONNX):
        names = [n for n in (layout.ONNX, layout.ONNX_DATA, layout.ANCHOR) if current.has(n)]
        current.verify(names)
        old = current.path / layout.ONNX
        files += [current.path / name for name in names]
        anchors = current.path / layout.ANCHOR if layout.ANCHOR in names else None
    task = {
        "new": str(staged / layout.ONNX),
        "new_labels": labels,
        "old": None if old is None else str(old),
        "old_labels": () if current is None else current.labels,
        "anchors": None if anchors is None else str(anchors),
        "task_type": header.task_type,
        "source": dict(header.source),
        "memory": MEMORY + _TIMES * sum(path.stat().st_size for path in files if path.exists()),
        "seconds": SECONDS,
    }
    answer = _run(staged, task)
    if "problem" in answer:
        raise GateRefusedError(
            str(staged / layout.ONNX),
            expected="a model that runs here, with finite outputs for its labels",
            found=str(answer["problem"]),
            remedy="tell who made the bundle; the old model still serves",
        )
    before, after = answer["before"], answer["after"]
    if before is None or after is None:
        return Judged(0, note=str(answer["note"]))
    from edge_pslora.core.gate import decide  # numpy, of which a call with nothing new has no need

    decision = decide(GateConfig(), (), anchor_before=before, anchor_after=after)
    figures = decision.figures
    judged = Judged(len(after), figures.anchor_before, figures.anchor_after, figures.anchor_p)
    if not decision.promote:
        raise GateRefusedError(
            str(staged / layout.ONNX),
            expected=f"a model that is no worse on this device's {len(after)} anchors",
            found=decision.reasons[0],
            remedy="the old model still serves; the refused one lies in staging/refused",
            figures=judged.to_dict(),
        )
    return judged


def _run(staged: Path, task: Mapping[str, Any]) -> dict[str, Any]:
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "edge_pslora.device.gate_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            out, _ = process.communicate(json.dumps(task).encode("ascii"), timeout=SECONDS)
        except subprocess.TimeoutExpired as problem:
            raise _not_judged(staged, f"it had not ended after {SECONDS} seconds") from problem
        finally:
            with suppress(ProcessLookupError):
                process.kill()
    code, lines = process.returncode, out.splitlines()
    if code == -signal.SIGXCPU:
        raise _not_judged(staged, f"it took more than {SECONDS} seconds of computation")
    memory = int(json.loads(lines[0])["memory"]) if lines else 0
    how = f"its process ended by {f'signal {-code}' if code < 0 else f'exit code {code}'}"
    answer: dict[str, Any] = json.loads(lines[1]) if code == 0 else {"problem": how}
    if "problem" in answer and memory < task["memory"]:
        raise EdgePsloraError(
            str(staged / layout.ONNX),
            expected=f"{task['memory']:,} bytes of address space to try it in",
            found=f"{memory:,}, in which {answer['problem']}"
            if lines
            else f"too little to begin: {how}",
            remedy="give the process more memory, then run the same command again",
        )
    if code != 0:
        raise _not_judged(staged, f"{how}: too little memory, or worse")
    return answer


def _not_judged(staged: Path, found: str) -> NotJudgedError:
    return NotJudgedError(
        str(staged / layout.ONNX),
        expected="a model that runs within this device's limits",
        found=found,
        remedy="the old model still serves; run the same command again, or tell who made the bundle",
    )
