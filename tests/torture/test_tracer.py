"""The tracer sees what a process does to files, whoever does it, and ends or fails what it is told to."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.torture import tracer

pytestmark = pytest.mark.skipif(
    not tracer.AVAILABLE, reason="the tracer is for Linux on x86-64; here nothing is killed"
)
# run in a process of its own: pytest's workers have threads
PRELUDE = """
import ctypes, errno, os, signal, subprocess, sys, threading
from pathlib import Path
from tests.torture.tracer import *
root = Path(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
def of(traced): return [(c.name, Path(c.path).name) for c in traced.calls]
def same(found, wanted): assert found == wanted, (found, wanted)
if not permitted(): sys.exit(77)
"""


@pytest.fixture
def traced(tmp_path: Path) -> Iterator[object]:
    def run(code: str) -> subprocess.CompletedProcess[str]:
        program = PRELUDE + textwrap.dedent(code)
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode == 77:
            pytest.skip("ptrace is not permitted here: no kill is tried")
        assert done.returncode == 0, done.stderr
        return done

    return run


def test_python_and_c_libraries_are_seen(traced):
    traced(
        """
        def work():
            (root / "a").write_bytes(b"one")
            file = libc.fopen; file.restype = ctypes.c_void_p
            stream = file(os.fsencode(root / "c"), b"w")
            libc.fputs(b"from C", ctypes.c_void_p(stream)); libc.fclose(ctypes.c_void_p(stream))
            (root / "a").read_bytes(); Path("/dev/null").write_bytes(b"elsewhere")
            os.chdir(root); os.mkdir("d"); os.rename("a", "d/b")
            folder = os.open("d", os.O_RDONLY); os.unlink("b", dir_fd=folder); os.fsync(folder)
            os.truncate("c", 2); os.link("c", "e"); os.symlink("c", "f"); os.rmdir("d")
            return 7
        done = run_traced(work, root)
        same(done.exit, 7)
        same(of(done), [
            ("create", "a"), ("write", "a"), ("create", "c"), ("write", "c"), ("mkdir", "d"),
            ("rename", "a"), ("unlink", "b"), ("fsync", "d"), ("truncate", "c"), ("link", "c"),
            ("symlink", "f"), ("rmdir", "d")])
        same(done.calls[5].target, str(root.resolve() / "d/b"))
        same(done.calls[0].truncates, True)
        same([c.number for c in done.calls], list(range(1, 13)))
        """
    )


def test_threads_forked_and_started_children_are_seen_and_killed(traced, tmp_path):
    traced(
        """
        def work():
            thread = threading.Thread(target=lambda: (root / "thread").touch())
            thread.start(); thread.join()
            if os.fork() == 0:
                (root / "fork").touch(); os._exit(0)
            os.wait()
            subprocess.run(["mkdir", root / "started"], check=True, start_new_session=True)
            return 0
        done = run_traced(work, root)
        same(done.exit, 0)
        same(of(done), [("create", "thread"), ("create", "fork"), ("mkdir", "started")])
        os.rmdir(root / "started")
        same(run_traced(work, root, kill_at(1)).exit, -signal.SIGKILL)
        same((root / "started").exists(), False)
        def leaves():  # a child that sleeps for ever ends with the tree
            if os.fork() == 0: signal.pause()
            (root / "last").touch(); return 0
        same(run_traced(leaves, root, kill_at(1)).exit, -signal.SIGKILL)
        """
    )
    assert not (tmp_path / "last").exists()


def test_killed_before_the_call_is_made(traced, tmp_path):
    traced(
        """
        def work():
            for name in "abc": (root / name).mkdir()
            return 0
        done = run_traced(work, root, kill_at(2))
        same((done.exit, of(done)), (-9, [("mkdir", "a"), ("mkdir", "b")]))
        """
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_a_call_fails_and_is_not_made(traced, tmp_path):
    traced(
        """
        def work():
            with open(root / "full", "wb", buffering=0) as file:
                try: file.write(b"x")
                except OSError as problem: return problem.errno
            return 0
        fail = lambda call: errno.ENOSPC if call.name == "write" else Action.GO_ON
        same(run_traced(work, root, fail).exit, errno.ENOSPC)
        """
    )
    assert (tmp_path / "full").read_bytes() == b""


def test_recorded_data_offsets_and_results(traced):
    traced(
        """
        def work():
            fd = os.open(root / "a", os.O_RDWR | os.O_CREAT)
            os.write(fd, b"abcdef"); os.pwrite(fd, b"XY", 2); os.writev(fd, [b"g", b"h"])
            os.ftruncate(fd, 5)
            end = os.open(root / "a", os.O_WRONLY | os.O_APPEND); os.write(end, b"end")
            new = os.open(root / "b", os.O_RDWR | os.O_CREAT); os.write(new, b"12")
            os.copy_file_range(fd, new, 3, offset_src=1)
            os.copy_file_range(fd, new, 2, offset_src=0, offset_dst=9)
            os.unlink(root / "b"); os.write(new, b"no name")
            try: os.mkdir(root / "a")
            except FileExistsError: pass
            return 0
        done = run_traced(work, root, record=True)
        same(done.exit, 0)
        same([(c.offset, c.data) for c in done.calls if c.name == "write"], [
            (0, b"abcdef"), (2, b"XY"), (6, b"gh"), (5, b"end"), (0, b"12"), (2, b"bXY"),
            (9, b"ab"), (5, b"no name")])
        same([(c.length, c.result) for c in done.calls if c.name == "ftruncate"], [(5, 0)])
        same(done.calls[-1].result, -errno.EEXIST)
        """
    )


def test_what_a_child_raises_is_printed(traced):
    done = traced(
        """
        def work(): raise ValueError("found me")
        same(run_traced(work, root).exit, 70)
        """
    )
    assert "in work" in done.stderr
    assert "ValueError: found me" in done.stderr
