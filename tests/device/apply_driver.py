"""A process to kill: takes a bundle, torch-free. `apply_driver.py ROOT_JSON BUNDLE SICK TEMPLATE ROOT STEP`

Forks once to count the changing calls of the os module, then for n = 1, 1 + STEP, ...: the child works
on a copy of TEMPLATE in ROOT/n and kills itself just before its n-th call. After each kill: who serves,
whether everything that serves is whole, and what the same command makes of it. One JSON object a line:
first the uninterrupted run's end. SICK: the health check fails.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_pslora.device import local_gate
from edge_pslora.device.apply import Request, apply
from edge_pslora.device.health import HealthCheck
from edge_pslora.errors import GateRefusedError
from edge_pslora.workspace.status import describe_updates
from edge_pslora.workspace.workspace import Workspace

CHANGING = ("write", "fsync", "rename", "replace", "unlink", "mkdir", "rmdir", "symlink")
CHANGING += ("copy_file_range", "link", "pwrite", "ftruncate")


def before_each(act: Callable[[int], None]) -> None:
    """act(n) just before the n-th call."""
    calls = 0

    def guarded(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            act(calls)
            return real(*args, **kwargs)

        return call

    for name in CHANGING:
        setattr(os, name, guarded(getattr(os, name)))


def judged(staged: Path, task: Mapping[str, Any]) -> dict[str, Any]:
    """The child process changes nothing; it is not what is killed here."""
    return {"before": None, "after": None, "note": "not judged"}


def update(path: Path, root: Path, bundle: str, sick: bool) -> int:
    check = HealthCheck(("false" if sick else "true",), 10, 0)
    try:
        apply(Request(path, bundle, root, None, check))
    except GateRefusedError as problem:
        return problem.exit_code
    return 0


def seen(path: Path) -> dict[str, Any]:
    """The state without times, and every file's bytes by length, none of them left over."""
    found: dict[str, Any] = {"served": None, "generations": [], "updates": None, "files": []}
    if Workspace.exists(path):
        opened = Workspace.open(path)
        opened.verify_base()
        current = opened.current()
        if current is not None:
            current.verify()
            found["served"] = asdict(current.manifest)["number"]
            found["model"] = current.manifest.files["model.onnx"].sha256
        found["generations"] = list(opened.generations())
        found["updates"], damage = describe_updates(path)
        assert not damage, damage
    found["files"] = sorted(
        entry.relative_to(path).as_posix()
        for entry in path.rglob("*")
        if entry.name not in ("lock", "staging", "refused")
    )
    return found


def main(root: str, bundle: str, sick: str, template: str, place: str, step: str) -> None:
    assert not {"torch", "onnx"} & sys.modules.keys()
    local_gate._run = judged  # type: ignore[assignment]
    number, total = 0, 1
    while number <= total:
        path = Path(place) / str(number)
        if Path(template).exists():
            shutil.copytree(template, path)
        child = os.fork()
        if child == 0:
            calls = [0]

            def act(count: int, last: int = number, calls: list[int] = calls) -> None:
                calls[0] = count
                if count == last:
                    os.kill(os.getpid(), signal.SIGKILL)

            before_each(act)
            code = update(path, Path(root), bundle, sick == "sick")
            (Path(place) / "calls").write_text(f"{calls[0]} {code}", encoding="ascii")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if number == 0:
            total, code = map(int, (Path(place) / "calls").read_text(encoding="ascii").split())
            print(json.dumps({"calls": total, "code": code, **seen(path)}), flush=True)
        else:
            if not os.WIFSIGNALED(status):
                sys.exit(f"the process that was to die at call {number} ended by itself: {status}")
            middle = seen(path)
            code = update(path, Path(root), bundle, sick == "sick")
            print(json.dumps({"middle": middle, "code": code, **seen(path)}), flush=True)
        shutil.rmtree(path)
        number += int(step) if number else 1


if __name__ == "__main__":
    main(*sys.argv[1:])
