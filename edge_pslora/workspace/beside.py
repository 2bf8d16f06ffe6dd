"""Work in a second thread that is never waited for in vain.

`threading.Thread.start` waits until the new thread says that it runs. One that finds no memory for its
first call never says so, and the process hangs for ever. Here whoever comes first does the work: the
thread, or the one that asks for the result.
"""

from __future__ import annotations

import _thread
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Result = TypeVar("Result")

# A stack, as large as systems give it, and frames. The interpreter writes to stderr of a thread that has
# too little for its first call, and nothing can be said against it there.
_NEEDED = 16 << 20  # bytes


@dataclass
class _Job(Generic[Result]):
    work: Callable[[], Result]
    results: list[Result] = field(default_factory=list)
    error: BaseException | None = None
    claimed: _thread.LockType = field(default_factory=_thread.allocate_lock)
    busy: _thread.LockType = field(default_factory=_thread.allocate_lock)

    def run(self) -> None:
        """In the thread."""
        with self.busy:
            if not self.claimed.acquire(blocking=False):
                return
            try:
                self.results.append(self.work())
            except BaseException as error:  # noqa: BLE001 - raised in the thread that asks
                self.error = error

    def result(self) -> Result:
        if self.claimed.acquire(blocking=False):
            return self.work()
        with self.busy:
            pass
        if self.error is not None:
            raise self.error
        return self.results[0]

    def end(self) -> None:
        """The work has ended, or is never begun."""
        if not self.claimed.acquire(blocking=False):
            with self.busy:
                pass


@contextmanager
def beside(work: Callable[[], Result]) -> Iterator[Callable[[], Result]]:
    """Does `work` while the block runs; what it yields, to be called once, gives the result.

    What the work raised is raised there. The block is not left while the work is at it; work that has
    not begun by then, and whose result nobody asked for, is not done.
    """
    job = _Job(work)
    # without a thread it is done when it is asked for
    with suppress(RuntimeError, MemoryError, OSError):
        mmap.mmap(-1, _NEEDED).close()
        _thread.start_new_thread(job.run, ())
    try:
        yield job.result
    finally:
        job.end()
