"""A warm process that forks a child for each command line, so that a kill costs one second, not five.

Run as a script. One JSON object per line on stdin: {"argv": [...], "kill": "MODULE:NAME:WHEN:N",
"out": FILE}. It answers with two lines: the child's process id at its start, its exit status at its
end (minus the signal's number if one ended it). `kill`: the child kills itself before or after
(WHEN) the N-th call of that function; null: it does not.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    _warm_up()
    print("ready", flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_work(task))
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _warm_up() -> None:
    """One session, so that everything is imported before the first fork."""
    import numpy as np

    import edge_pslora
    from tests.export_kit import prepare_exports_once

    prepare_exports_once()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "d.npz"
        rows = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
        np.savez(data, x=rows, y=(rows[:, 0] > 0).astype(np.int64))
        edge_pslora.adapt(data, model="auto", workspace=Path(folder) / "w")


def _work(task: dict[str, Any]) -> int:
    from edge_pslora.cli.main import main as command

    with Path(task["out"]).open("w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        if task["kill"]:
            _plant(task["kill"])
        code = command(task["argv"])
        sys.stdout.flush()
        return code


def _plant(spec: str) -> None:
    module_name, name, when, count = spec.split(":")
    module = importlib.import_module(module_name)
    real, calls = getattr(module, name), iter(range(1, 10**6))

    def killing(*args: Any, **options: Any) -> Any:
        last = next(calls) == int(count)
        if last and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **options)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, name, killing)


if __name__ == "__main__":
    main()
