"""A process to kill: brings a deployed model to another generation, torch-free.

python patch_driver.py WORKSPACE GENERATION ROOT COUNT   for n = 1 ... COUNT: fork; the child patches
    ROOT/n/model.onnx and kills itself just before its n-th changing call of the os module
python patch_driver.py WORKSPACE GENERATION FILE         count those calls, and say how many
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_pslora.exporters.export_patch import patch_export

CHANGING = ("write", "fsync", "rename", "unlink", "link", "open", "copy_file_range")


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


def main(workspace: str, generation: str, root: str, count: str | None = None) -> None:
    assert "torch" not in sys.modules
    if count is None:
        seen: list[int] = []
        before_each(seen.append)
        patch_export(Path(workspace), Path(root), generation=int(generation))
        print(len(seen))
        return
    for n in range(1, int(count) + 1):
        child = os.fork()
        if child == 0:
            before_each(lambda calls, n=n: calls == n and os.kill(os.getpid(), signal.SIGKILL))
            patch_export(
                Path(workspace), Path(root, str(n), "model.onnx"), generation=int(generation)
            )
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"the process that was to die at call {n} ended by itself: {status}")


if __name__ == "__main__":
    main(*sys.argv[1:])
