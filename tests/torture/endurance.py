"""A thousand adaptations in one process: memory, descriptors, threads, files and time stay as they are."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edge_pslora.cli.main import main
from edge_pslora.workspace import layout
from edge_pslora.workspace.manifest import describe_files
from edge_pslora.workspace.workspace import Workspace
from tests.torture.forked import fast_folder, in_processes
from tests.torture.kill_scenes import Materials
from tests.torture.plan import Plan, Row

_RSS_PERCENT = 5.0
_SMALL = (
    *("--epochs", "1", "--batch-size", "32", "--rank", "2", "--anchor-budget", "20KB"),
    *("--force", "--json", "--keep-duplicates"),
)
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class _Held:
    """What the process holds."""

    rss: int
    descriptors: int
    threads: int
    temporary: tuple[str, ...]


@dataclass
class _Course:
    """seconds: of each adaptation (CPU). history: bytes of each generation's."""

    seconds: list[float] = field(default_factory=list)
    history: set[int] = field(default_factory=set)


def run(plan: Plan) -> list[Row]:
    with fast_folder(plan) as folder:
        made = Materials(plan.shared or folder / "made")
        if not made.ready:
            in_processes([partial(_make, made)], folder)
        jobs = [partial(_adaptations, plan, folder), partial(_updates, plan, folder, made)]
        return in_processes(jobs, folder)


def _make(made: Materials) -> list[Row]:
    made.make()
    return []


def _updates(plan: Plan, folder: Path, made: Materials) -> list[Row]:
    """Bundle, apply, roll back, again and again, in one process."""
    # Python takes memory by the megabyte: its last arena comes within the first hundred rounds
    count, warm = plan.size(600, 6), plan.size(100, 3)
    temporary = folder / "tmp-updates"
    temporary.mkdir()
    tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
    home, device, bundle = folder / "home", folder / "device", folder / "bundle"
    shutil.copytree(made.root / "after-2", home)
    shutil.copytree(made.root / "device", device)
    keys = made.root / "keys"
    signed = (
        "--key",
        keys / "key-1.pem",
        "--key",
        keys / "key-2.pem",
        "--root",
        keys / "root.json",
    )
    before = _held(temporary)
    for number in range(1, count + 1):
        if number == warm + 1:
            before = _held(temporary)
        command = ("bundle", home, bundle, *signed, "--kind", "full", "--counter", number + 1)
        _command(*command)
        _command("apply", device, "--from", bundle, "--no-check")
        _command("rollback", device, "--to", 1)
        shutil.rmtree(bundle)
    rows = _held_rows(count, warm, before, _held(temporary))
    opened = Workspace.open(device)
    published = len(opened.generations()) - 1
    rows.append(Row("updates that were not taken", count, count - published, count))
    left = [*(device / layout.STAGING).iterdir(), *device.rglob(".*")]
    rows.append(Row("leftovers", count, len(left), count))
    return [replace(row, what=f"apply and roll back: {row.what}") for row in rows]


def _command(*argv: object) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main([str(word) for word in argv])
    if code != 0:
        raise AssertionError(f"{argv[0]}: exit {code}: {printed.getvalue()[-500:]}")


def _adaptations(plan: Plan, folder: Path) -> list[Row]:
    from tests.export_kit import prepare_exports_once

    prepare_exports_once()
    count, warm = plan.size(1_000, 10), plan.size(50, 5)
    temporary = folder / "tmp"
    temporary.mkdir()
    tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
    data, path = _data(folder), folder / "w"
    course = _Course()
    before = _held(temporary)
    for number in range(1, count + 1):
        if number == warm + 1:
            before = _held(temporary)
        began = time.process_time()
        _adapt(data, path)
        course.seconds.append(time.process_time() - began)
        name = layout.generation_name(number)
        course.history.add((path / layout.GENERATIONS / name / layout.HISTORY).stat().st_size)
    after = _held(temporary)
    rows = [*_held_rows(count, warm, before, after), *_disk_rows(count, path, course)]
    if not plan.quick:  # a few on a busy machine say nothing of time
        rows.append(_time_row(count, course, warm))
    return [replace(row, what=f"adapt in a row: {row.what}") for row in rows]


def _held_rows(count: int, warm: int, before: _Held, after: _Held) -> list[Row]:
    growth = 100.0 * (after.rss - before.rss) / before.rss
    # torch makes itself one empty folder, for all programs and for good
    left = set(after.temporary) - set(before.temporary)
    note = f"{before.rss >> 10} KiB after {warm}, {after.rss >> 10} KiB at the end"
    return [
        Row(
            "RSS growth, %",
            count,
            round(growth, 2),
            count,
            _RSS_PERCENT,
            note,
        ),
        Row("descriptors left open", count, after.descriptors - before.descriptors, count),
        Row("threads left", count, after.threads - before.threads, count),
        Row("temporary files left", count, len(left), count, note=" ".join(sorted(left)[:5])),
    ]


def _disk_rows(count: int, path: Path, course: _Course) -> list[Row]:
    opened = Workspace.open(path)
    total = sum(entry.bytes for entry in opened.header.base_files.values())
    manifests = 0
    for number in opened.generations():
        generation = opened.generation(number)
        manifest = (generation.path / layout.MANIFEST).stat().st_size
        manifests += manifest
        total += generation.bytes + manifest
    total += sum(p.stat().st_size for p in path.iterdir() if p.is_file())
    found = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    kept = len(opened.generations())
    note = (
        f"{kept} generations, {found // max(1, kept)} bytes each, {manifests // count} of manifest"
    )
    return [
        Row("bytes on the disk that no manifest names", count, found - total, count, note=note),
        Row("leftovers in staging", count, len(list((path / layout.STAGING).iterdir())), count),
        Row("sizes of the history but one", count, len(course.history) - 1, count),
    ]


def _time_row(count: int, course: _Course, warm: int) -> Row:
    some = min(50, (count - warm) // 2)
    first, last = _middle(course.seconds[warm:][:some]), _middle(course.seconds[-some:])
    pace = f"{1000 * first:.0f} ms of CPU at first, {1000 * last:.0f} ms at the end"
    name = "an adaptation's time, growth in times"
    return Row(name, count, round(last / first - 1, 2), count, 1.0, pace)


def _middle(values: Sequence[float]) -> float:
    return statistics.median(values)


def _adapt(data: Path, path: Path) -> None:
    model = () if path.exists() else ("--model", "auto")
    _command("adapt", data, "--workspace", path, *model, *_SMALL)


def _data(folder: Path) -> Path:
    rows = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    path = folder / "d.npz"
    np.savez(path, x=rows, y=(rows[:, 0] > 0).astype(np.int64))
    return path


def _held(temporary: Path) -> _Held:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return _Held(
        pages * _PAGE,
        len(list(Path("/proc/self/fd").iterdir())),
        len(list(Path("/proc/self/task").iterdir())),
        tuple(str(path.relative_to(temporary)) for path in temporary.rglob("*")),
    )


def _leaks() -> None:
    """At each publication a descriptor, a file and memory are kept, and time is spent on all before."""
    kept: list[object] = []

    def publish(self: Workspace, staged: Path, content: Any, **more: Any) -> Any:
        kept.append(os.open(self.path, os.O_RDONLY))
        kept.append(tempfile.mkstemp()[1])
        kept.append(bytearray(os.urandom(8 << 20)))
        for _ in range(3):  # longer with each generation: only the full form measures time
            describe_files(self.path)
        return real(self, staged, content, **more)

    real = Workspace.publish
    Workspace.publish = publish  # type: ignore[method-assign]


PLANTS: Mapping[str, Callable[[], None]] = {"leaks": _leaks}
