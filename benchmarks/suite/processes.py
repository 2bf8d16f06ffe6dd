"""Groups of runs in processes: one loads the stream, and forks one for each method.

So the stream is encoded once, each run has its own peak of memory, and one that dies takes nothing
with it. Everything is computed by one thread.
"""

from __future__ import annotations

import json
import os
import selectors
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.machine import commit
from benchmarks.suite.budget import Draw
from benchmarks.suite.plan import Group
from edge_pslora.compare.method import Method
from edge_pslora.compare.results import append
from edge_pslora.compare.run import run
from edge_pslora.compare.stream import Stream
from edge_pslora.errors import EdgePsloraError


@dataclass(frozen=True)
class Ended:
    """A run that came to its end, or a stream that could not be loaded (method ""); problem: why."""

    stream: str
    seed: int
    method: str
    seconds: float
    figures: str
    problem: str = ""


def run_groups(groups: Sequence[Group], out: Path, jobs: int) -> Iterator[Ended]:
    """All groups, `jobs` at a time; tells of each run as it ends. Results are appended to `out`."""
    waiting, selector = list(groups), selectors.DefaultSelector()
    running = 0
    while waiting or running:
        while waiting and running < jobs:
            descriptor, child = _start(waiting.pop(0), out)
            selector.register(os.fdopen(descriptor, "rb"), selectors.EVENT_READ, child)
            running += 1
        for key, _ in selector.select():
            line = key.fileobj.readline()  # type: ignore[union-attr]
            if line:
                yield Ended(**json.loads(line))
            else:
                selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
                os.waitpid(key.data, 0)
                running -= 1


def _start(group: Group, out: Path) -> tuple[int, int]:
    """(descriptor to read from, process id) of a child that works on the group."""
    reading, writing = os.pipe()
    parent = os.getpid()

    def work() -> None:
        os.close(reading)

        def tell(ended: Ended) -> None:
            os.write(writing, (json.dumps(vars(ended)) + "\n").encode())

        _work(group, out, tell, lambda: os.getppid() != parent)

    child = _forked(work)
    os.close(writing)
    return reading, child


def _work(
    group: Group, out: Path, tell: Callable[[Ended], None], orphaned: Callable[[], bool]
) -> None:
    with tempfile.TemporaryDirectory(prefix="edge-pslora-suite-") as folder:
        start = time.monotonic()
        try:
            stream = _load(group, Path(folder))
        except EdgePsloraError as error:
            tell(Ended(group.stream.key, group.seed, "", 0.0, "", str(error)))
            return
        tell(Ended(group.stream.key, group.seed, "", time.monotonic() - start, _sizes(stream)))
        for method in group.methods:
            if orphaned():  # the suite was stopped: nobody reads what comes of this
                return
            child = _forked(partial(_one, group, method, stream, out, tell))
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if code:
                why = f"it ended with {code}"
                tell(Ended(group.stream.key, group.seed, method.key, 0.0, "", why))


def _load(group: Group, folder: Path) -> Stream:
    base, work = folder / "base", folder / "data"
    base.mkdir()
    work.mkdir()
    stream = group.stream
    return stream.load(Draw(group.seed, group.order, base, work, stream.budget, stream.also))


def _one(
    group: Group, method: Method, stream: Stream, out: Path, tell: Callable[[Ended], None]
) -> None:
    budget = group.stream.budget
    start = time.monotonic()
    results = run(
        method,
        stream,
        group.stream.config(),
        group.seed,
        part=group.part,
        facts=budget.facts(),
        commit=commit(),
    )
    for result in results:
        append(out, result)
    figures = ", ".join(f"{r.setting.partition('-')[0]} {r.average:.3f}" for r in results)
    tell(Ended(group.stream.key, group.seed, method.key, time.monotonic() - start, figures))


def _sizes(stream: Stream) -> str:
    counts = [len(task.train.targets) for task in stream.tasks]
    out = f"; {stream.rejected} unreadable rows left out" if stream.rejected else ""
    return f"{len(counts)} tasks of {min(counts)} to {max(counts)} samples{out}"


def _forked(work: Callable[[], Any]) -> int:
    """The id of a child that does this work and nothing else."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except EdgePsloraError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130  # the suite itself says that it was stopped
    except BaseException:  # noqa: BLE001 - the outermost frame of the child
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
