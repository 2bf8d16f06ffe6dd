"""Work in a second thread: its result, its error, and threads that never come to life."""

from __future__ import annotations

import _thread
import os
import subprocess
import sys
import time

import pytest

from edge_pslora.workspace.beside import beside


def test_it_runs_beside_the_block_and_gives_its_result() -> None:
    began = _thread.allocate_lock()
    began.acquire()

    def work() -> int:
        began.release()
        return _thread.get_ident()

    with beside(work) as result:
        assert began.acquire(timeout=10)  # though nobody asked for the result yet
        assert result() != _thread.get_ident()


def test_what_it_raises_is_raised_where_the_result_is_asked_for() -> None:
    with beside(lambda: os.fsync(999_999)) as result:
        time.sleep(0.05)
        with pytest.raises(OSError, match="Bad file descriptor"):
            result()


def test_the_block_is_not_left_while_it_is_at_work() -> None:
    done, began = [], _thread.allocate_lock()
    began.acquire()

    def work() -> None:
        began.release()
        time.sleep(0.1)
        done.append(True)

    with beside(work):
        began.acquire()
        assert not done
    assert done


@pytest.mark.parametrize("fault", [MemoryError, RuntimeError, None])
def test_a_thread_that_does_not_come_to_life_is_not_waited_for(monkeypatch, fault) -> None:
    """None: it was started, and died before its first call."""

    def start(*arguments: object) -> int:
        if fault is not None:
            raise fault
        return 1

    monkeypatch.setattr(_thread, "start_new_thread", start)
    count = []
    with beside(lambda: count.append(_thread.get_ident())) as result:
        result()
    assert count == [_thread.get_ident()]
    with beside(lambda: count.append(0)):
        pass
    assert len(count) == 1


def test_threads_under_a_limit_of_memory() -> None:
    """The real thing: address space for no thread's stack, or for its stack and no more; the stack of a
    thread that has ended is taken again."""
    program = """
import resource, time
from edge_pslora.workspace.beside import beside
with beside(lambda: 7) as result:
    time.sleep(0.05)
pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for more in range(0, 20 << 20, 1 << 18):
    resource.setrlimit(resource.RLIMIT_AS, (pages + more, resource.RLIM_INFINITY))
    with beside(lambda: 7) as result:
        assert result() == 7
print("done")
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("limits and /proc are Linux's")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("done\n", "")
