"""Many readers while a writer swaps: each sees one generation, whole, and waits for nobody.

The files of generation N are those of a real session, of the first where N is odd and of the second
where it is even: so a mix shows in the files, whatever the manifests say.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edge_pslora.cli.main import main
from edge_pslora.errors import EdgePsloraError
from edge_pslora.exporters.run import open_onnx
from edge_pslora.workspace import durable, layout
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.lock import writer_lock
from edge_pslora.workspace.workspace import Workspace
from tests.torture.forked import fast_folder, in_processes
from tests.torture.kill_scenes import Materials
from tests.torture.plan import Plan, Row

_READERS, _SECONDS = 3, 1500.0
_PUBLISHED_EVERY = 10  # of so many swaps one is a new generation, the others go back and forth
_SLOW = 20.0  # seconds that no read may take, on a machine that is busy with its writer


def run(plan: Plan) -> list[Row]:
    swaps, reads = plan.size(1_000, 30), plan.size(10_000, 90)
    with fast_folder(plan) as folder:
        made = Materials(plan.shared or folder / "made")
        if not made.ready:
            in_processes([partial(_make, made)], folder)
        path = folder / "w"
        shutil.copytree(made.root / "after-2", path)
        each = -(-reads // _READERS)
        jobs: list[Callable[[], list[Row]]] = [partial(_write, path, swaps, _READERS)]
        for number in range(_READERS):
            jobs.append(partial(_read, path, each, plan, number))
        rows = in_processes(jobs, folder)
    writer, readers = rows[0], rows[1:]
    found = [row for row in readers if row.what == "read"]
    locked = [row for row in readers if row.what == "lock"]
    died = [row for row in readers if row.what not in ("read", "lock")]
    note = next((row.note for row in found if row.bad), "") or readers[0].note
    total = sum(row.cases for row in found)
    bad = sum(row.bad for row in [*found, *died])
    return [
        Row("swaps under readers", writer.cases, writer.bad, swaps, note=writer.note),
        Row("reads during swaps: mixed, lost or failed", total, bad, reads, note=note),
        Row("reads that took a lock or waited", total, sum(row.bad for row in locked), reads),
    ]


def _make(made: Materials) -> list[Row]:
    made.make()
    return []


def _write(path: Path, swaps: int, readers: int) -> list[Row]:
    """Swaps, under the writer's lock from the first to the last, until the readers have enough."""
    seen, bad, note = 0, 0, ""
    with writer_lock(path):
        opened = Workspace.open(path)
        first = {number: opened.generation(number) for number in (1, 2)}
        end = time.monotonic() + _SECONDS
        while seen < swaps or len(list(path.parent.glob("reader-*"))) < readers:
            if time.monotonic() > end:
                raise TimeoutError(f"{seen} swaps, and the readers are not done")
            try:
                if seen % _PUBLISHED_EVERY == 0 and seen < swaps:
                    _publish(opened, first)
                else:
                    opened.rollback(1 + seen % max(opened.generations()))
            except EdgePsloraError as problem:
                bad, note = bad + 1, str(problem)
            seen += 1
    made = len(opened.generations()) - len(first)
    note = note or f"{made} of them published a generation"
    return [Row("swaps", seen, bad, note=note)]


def _publish(opened: Workspace, first: Mapping[int, Generation]) -> None:
    staged = opened.begin("next")
    source = first[1 if staged.number % 2 else 2]
    durable.make_folder(staged.folder / layout.ADAPTER)
    for name in source.manifest.files:
        durable.copy_file(source.path / name, staged.folder / name)
    current = opened.current()
    assert current is not None
    content = replace(
        source.manifest, number=staged.number, parent=current.number, counter=staged.number
    )
    opened.publish(staged.folder, content)


@dataclass(frozen=True)
class _Wanted:
    """What the files of an odd and of an even generation are, and what its model answers."""

    files: Mapping[int, Mapping[str, str]]
    answers: Mapping[int, Any]
    inputs: Mapping[str, Any]

    def check(self, number: int, files: Mapping[str, str], names: tuple[str, ...]) -> None:
        kind = 1 if number % 2 else 2
        for name in names:
            if files[name] != self.files[kind][name]:
                raise AssertionError(f"generation {number}: {name} is another generation's")


def _read(path: Path, count: int, plan: Plan, number: int) -> list[Row]:
    rng = random.Random(plan.seed + number)
    wanted = _wanted(path)
    locks = _count_locks()
    done, bad, slow, notes = 0, 0, 0, []
    kinds: list[Callable[[Path, _Wanted, Path], None]] = [_by_library] * 12
    kinds += [_by_runtime] * 5 + [_by_status] * 2 + [_by_export]
    out = path.parent / f"out-{number}"
    spent: list[float] = []
    seen: set[int] = set()
    while done < count:
        kind = _by_process if done == count // 2 else rng.choice(kinds)
        began = time.monotonic()
        try:
            kind(path, wanted, out)
        except (AssertionError, EdgePsloraError, OSError) as problem:
            bad += 1
            notes.append(f"{kind.__name__[1:]}: {problem}")
        spent.append(time.monotonic() - began)
        slow += spent[-1] > _SLOW
        seen.add(_pointed(path))
        done += 1
    (path.parent / f"reader-{number}").touch()
    if len(seen) < 2:
        notes.append("no swap was seen")
        bad += 1
    middle = sorted(spent)[len(spent) // 2]
    note = notes[0] if notes else f"a read takes {1000 * middle:.1f} ms, at most {max(spent):.2f} s"
    return [Row("read", done, bad, note=note), Row("lock", done, len(locks) + slow)]


def _wanted(path: Path) -> _Wanted:
    opened = Workspace.open(path)
    first = {number: opened.generation(number) for number in (1, 2)}
    inputs = {"x": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)}
    return _Wanted(
        {n: {name: e.sha256 for name, e in g.manifest.files.items()} for n, g in first.items()},
        {n: open_onnx(g.path / layout.ONNX, threads=1).run(inputs) for n, g in first.items()},
        inputs,
    )


def _by_library(path: Path, wanted: _Wanted, out: Path) -> None:
    """Every file of the generation that serves, against its manifest and its kind."""
    current = _current(path)
    current.verify()
    files = {name: entry.sha256 for name, entry in current.manifest.files.items()}
    wanted.check(current.number, files, tuple(files))


def _by_runtime(path: Path, wanted: _Wanted, out: Path) -> None:
    """What a program does that serves the model."""
    current = _current(path)
    found = open_onnx(current.path / layout.ONNX, threads=1).run(wanted.inputs)
    if not np.array_equal(found, wanted.answers[1 if current.number % 2 else 2]):
        raise AssertionError(f"the model of generation {current.number} answers as another")


def _by_status(path: Path, wanted: _Wanted, out: Path) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main(["status", str(path), "--json"])
    _check_status(code, printed.getvalue())


def _by_process(path: Path, wanted: _Wanted, out: Path) -> None:
    command = "import sys; from edge_pslora.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", command, "status", str(path), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    _check_status(done.returncode, done.stdout)


def _check_status(code: int, printed: str) -> None:
    facts = json.loads(printed)
    if code != 0 or facts["damage"]:
        raise AssertionError(f"status: exit {code}: {printed[:200]}")
    serving = [row["number"] for row in facts["generations"] if row["current"]]
    if serving != [facts["generation"]]:
        raise AssertionError(f"status: {serving} serve, and {facts['generation']} does")


def _by_export(path: Path, wanted: _Wanted, out: Path) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main(["export", str(path), str(out), "--format", "onnx", "--overwrite", "--json"])
    if code != 0:
        raise AssertionError(f"export: exit {code}: {printed.getvalue()[:200]}")
    record = json.loads((out / "export.json").read_text())
    files = {name: entry["sha256"] for name, entry in record["files"].items()}
    wanted.check(record["generation"], files, (layout.ONNX,))


def _current(path: Path) -> Generation:
    current = Workspace.open(path).current()
    if current is None:
        raise AssertionError("no generation serves")
    return current


def _pointed(path: Path) -> int:
    return int((path / layout.CURRENT).read_text().split()[0])


def _count_locks() -> list[int]:
    """Each lock that this process takes or asks for from now on. Nobody is waited for."""
    taken: list[int] = []
    real = fcntl.flock

    def counted(descriptor: int, operation: int) -> None:
        if not operation & fcntl.LOCK_UN:
            taken.append(operation)
            operation |= fcntl.LOCK_NB
        real(descriptor, operation)

    fcntl.flock = counted
    return taken


def _reader_that_locks() -> None:
    """A reader asks for the writer's lock, if only to share it."""

    def current(self: Workspace) -> Any:
        descriptor = os.open(self.path / layout.LOCK, os.O_RDONLY)
        try:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return real(self)
        finally:
            os.close(descriptor)

    real = Workspace.current
    Workspace.current = current  # type: ignore[method-assign]


def _writer_in_place() -> None:
    """What is published first is changed where it lies as soon as the next is."""

    def publish(self: Workspace, staged: Path, content: Any) -> Any:
        path = self.generation(1).path / layout.CARD
        path.write_bytes(path.read_bytes().swapcase())
        return real(self, staged, content)

    real = Workspace.publish
    Workspace.publish = publish  # type: ignore[method-assign]


PLANTS: Mapping[str, Callable[[], None]] = {
    "a reader that locks": _reader_that_locks,
    "in place": _writer_in_place,
}
