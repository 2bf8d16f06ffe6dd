"""Limits that the kernel sets, and failures that no tracer can make: see rows."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.torture.acts import in_child, perform, restore
from tests.torture.disk import Tree
from tests.torture.judging import Bench, Known, judged, tally_row
from tests.torture.plan import Plan, Row

_NEW_MOUNTS, _PRIVATE, _RECURSIVE, _REMOUNT = 0x20000, 1 << 18, 1 << 14, 32
_PAGE, _MIB = 4096, 1 << 20
# address space beyond what the process has, from ample to none
_MEMORY = (1024, 512, 256, 128, 64, 32, 16, 8, 4, 0)


def limit_rows(known: list[Known], plan: Plan, bench: Bench) -> list[Row]:
    """Writes that write less than asked, closes that fail, a file system of many sizes, little memory."""
    some = known[1::3] if plan.quick else known
    found = [_short_writes(some, bench), _failed_closes(some, plan, bench)]
    found.append(_small_disks(some, plan, bench))
    found.append(_little_memory(some[:2] if plan.quick else known, plan, bench))
    return found


def _short_writes(known: list[Known], bench: Bench) -> Row:
    """Every os.write takes half of what it is given: all of it gets there in the end."""
    name = "writes that take half"
    real = os.write

    def half(descriptor: int, data: Any) -> int:
        view = memoryview(data)
        return real(descriptor, view[: max(len(view) // 2, 1)])

    def limited() -> None:
        os.write = half

    for one in known:
        code = _disturbed(one, bench, limited)
        wrong = None if code == one.scene.ends else f"exit code {code}"
        _count(bench, name, one, wrong, code)
    return tally_row(f"space: {name}", bench.tally(name), len(known))


def _failed_closes(known: list[Known], plan: Plan, bench: Bench) -> Row:
    """The n-th close of a file that was written says that the data did not get there."""
    name = "close fails once"
    real = os.close

    def failing(number: int) -> Callable[[], None]:
        left = iter(range(number, -1, -1))

        def close(descriptor: int) -> None:
            written = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            real(descriptor)
            if written and path.name.endswith(".tmp") and next(left, -1) == 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        def limited() -> None:
            os.close = close

        return limited

    for one in known:
        for number in range(1, plan.size(30, 3)):
            code = _disturbed(one, bench, failing(number))
            _count(bench, name, one, None, code)
            if code == one.scene.ends:
                break  # there was no such close
    return tally_row(f"space: {name}", bench.tally(name), plan.size(50, 3))


def _small_disks(known: list[Known], plan: Plan, bench: Bench) -> Row:
    """A tmpfs of the scene's own, as large as what is there and some pages more."""
    name = "small file systems"
    if in_child(lambda: _mount(bench.folder, 16 * _MIB)) != 0:
        return Row(f"space: {name}", 0, 0, wanted=0, note="NOT TRIED: no mounts are permitted here")
    for one in known:
        for size in _sizes(one, plan):
            verdict = bench.folder / "verdict"
            verdict.unlink(missing_ok=True)
            code = in_child(lambda one=one, size=size: _on_small_disk(one, bench, size))
            wrong = verdict.read_text() if verdict.exists() else f"the case died with {code}"
            wrong = f"{one.scene.name}, {size} bytes: {wrong}" if wrong else None
            bench.tally(name).add(wrong, refused=code != one.scene.ends)
    return tally_row(f"space: {name}", bench.tally(name), plan.size(50, 6))


def _sizes(one: Known, plan: Plan) -> Iterator[int]:
    there, more = _pages(one.ends.before), 3 * _pages(one.ends.after)
    steps = plan.size(8, 3)
    for step in range(steps):
        yield (there + 1 + more * step // steps) * _PAGE


def _pages(tree: Tree) -> int:
    return sum(-(-len(content) // _PAGE) for content in tree.values() if content)


def _on_small_disk(one: Known, bench: Bench, size: int) -> int:
    """In a child with mounts of its own; writes what is wrong to `verdict`. The command's exit code."""
    place = bench.folder / "small"
    place.mkdir(exist_ok=True)
    if _mount(place, size) != 0:
        return 70
    root = place / "root"
    restore(root, one.ends.before)
    bench.forget()
    code = in_child(lambda: perform(one.scene, root, *bench.streams))
    _call_mount(place, _REMOUNT, f"size={64 * _MIB}")
    wrong = judged(one, root, bench, code)
    (bench.folder / "verdict").write_text(wrong or "")
    return code


def _mount(place: Path, size: int) -> int:
    """0 if `place` is now a file system of that size, for this process alone."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(_NEW_MOUNTS) != 0:
        return 1
    if library.mount(b"none", b"/", None, _PRIVATE | _RECURSIVE, None) != 0:
        return 1
    return _call_mount(place, 0, f"size={size}")


def _call_mount(place: Path, flags: int, options: str) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    code: int = library.mount(b"none", os.fsencode(place), b"tmpfs", flags, options.encode())
    return abs(code)


def _little_memory(known: list[Known], plan: Plan, bench: Bench) -> Row:
    name = "little memory"
    for one in known:
        for more in _MEMORY if not plan.quick else _MEMORY[::3]:

            def limited(more: int = more) -> None:
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                limit = pages * resource.getpagesize() + more * _MIB
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

            code = _disturbed(one, bench, limited)
            _count(bench, name, one, None, code, f"{more} MiB")
    return tally_row(f"space: {name}", bench.tally(name), plan.size(100, 8))


def _disturbed(one: Known, bench: Bench, limited: Callable[[], None]) -> int:
    """The scene from its beginning, in a child in which `limited` was called."""
    scene, root = one.scene, bench.folder / "root"
    restore(root, one.ends.before)
    bench.forget()
    return in_child(lambda: perform(scene, root, *bench.streams, limited))


def _count(
    bench: Bench, name: str, one: Known, wrong: str | None, code: int, where: str = ""
) -> None:
    wrong = wrong or judged(one, bench.folder / "root", bench, code)
    told = None if wrong is None else f"{one.scene.name}, {name} {where}: {wrong}"
    bench.tally(name).add(told, refused=code != one.scene.ends)
