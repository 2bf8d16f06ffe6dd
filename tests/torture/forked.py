"""Parts of a section in processes of their own, forked from one that has everything loaded."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from tests.torture.plan import Plan, Row

_IN_MEMORY = Path("/dev/shm")
_ENOUGH = 1 << 30


@contextmanager
def fast_folder(plan: Plan) -> Iterator[Path]:
    """An empty folder: in memory where there is room, since a kill asks nothing of the disk."""
    info = os.statvfs(_IN_MEMORY) if os.access(_IN_MEMORY, os.W_OK) else None
    roomy = info is not None and info.f_bavail * info.f_frsize > _ENOUGH
    with tempfile.TemporaryDirectory(
        prefix="torture-", dir=_IN_MEMORY if roomy else plan.scratch
    ) as folder:
        yield Path(folder)


def in_processes(jobs: Sequence[Callable[[], list[Row]]], folder: Path) -> list[Row]:
    """All at once, each in a child; the rows in order. One that died gives a row that is not met."""
    children = []
    for number, job in enumerate(jobs):
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                rows = [asdict(row) for row in job()]
                (folder / f"rows-{number}.json").write_text(json.dumps(rows))
                code = 0
            except BaseException:  # noqa: BLE001 - the outermost frame of the child
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    rows: list[Row] = []
    for number, child in enumerate(children):
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            found = json.loads((folder / f"rows-{number}.json").read_text())
            rows += [Row(**row) for row in found]
        else:
            rows.append(Row(f"part {number + 1} ended by itself", 0, 1, note=f"exit {code}"))
    return rows
