"""Watches what a process does to the disk, call by call, and may end it or fail a call. Linux, x86-64.

A forked child runs under ptrace with a seccomp filter, so that only calls which can change files stop
it: everything else runs at full speed. This is below Python: what a C library writes is seen too. Not
seen: stores into mapped files (tests of recorded traces compare their end with the real folder).
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import NoReturn

from tests.torture import ptrace

AVAILABLE = ptrace.AVAILABLE

_CALLS = {
    1: "write", 2: "open", 18: "pwrite64", 20: "writev", 40: "sendfile", 74: "fsync",
    75: "fdatasync", 76: "truncate", 77: "ftruncate", 82: "rename", 83: "mkdir", 84: "rmdir",
    85: "creat", 86: "link", 87: "unlink", 88: "symlink", 133: "mknod", 257: "openat",
    258: "mkdirat", 259: "mknodat", 263: "unlinkat", 264: "renameat", 265: "linkat",
    266: "symlinkat", 277: "sync_file_range", 285: "fallocate", 296: "pwritev", 306: "syncfs",
    316: "renameat2", 326: "copy_file_range", 328: "pwritev2", 437: "openat2",
}  # fmt: skip
_WRITES = {"write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range"}
_ON_DESCRIPTOR = {"write", "pwrite64", "writev", "pwritev", "pwritev2", "fsync", "fdatasync"}
_ON_DESCRIPTOR |= {"ftruncate", "fallocate", "sync_file_range", "syncfs", "sendfile"}
# name -> positions of (folder descriptor or None, path) pairs
_ON_PATHS: dict[str, tuple[tuple[int | None, int], ...]] = {
    "open": ((None, 0),), "creat": ((None, 0),), "openat": ((0, 1),), "openat2": ((0, 1),),
    "truncate": ((None, 0),), "mkdir": ((None, 0),), "mkdirat": ((0, 1),), "rmdir": ((None, 0),),
    "unlink": ((None, 0),), "unlinkat": ((0, 1),), "mknod": ((None, 0),), "mknodat": ((0, 1),),
    "rename": ((None, 0), (None, 1)), "renameat": ((0, 1), (2, 3)), "renameat2": ((0, 1), (2, 3)),
    "link": ((None, 0), (None, 1)), "linkat": ((0, 1), (2, 3)),
    "symlink": ((None, 1),), "symlinkat": ((1, 2),),
}  # fmt: skip
_PLAIN = {"openat": "create", "open": "create", "creat": "create", "openat2": "create"}
_PLAIN |= {"mkdirat": "mkdir", "renameat": "rename", "renameat2": "rename", "linkat": "link"}
_PLAIN |= {"symlinkat": "symlink", "mknodat": "mknod", "fdatasync": "fsync"}
_PLAIN |= dict.fromkeys(_WRITES, "write")

_AT_FDCWD, _AT_REMOVEDIR = -100, 0x200
_CREATING = os.O_CREAT | os.O_TRUNC
_EVENT_SECCOMP = 7
# system-call stops marked; fork, vfork, clone, exec and seccomp reported; all die with the tracer
_OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000
_WALL = 0x40000000
_UNTRACED = 71  # exit code of a child that may not be traced


class Action(Enum):
    """What becomes of a call. An int instead: it fails with that errno and is not made."""

    GO_ON = "go on"
    KILL = "kill"  # the whole process tree, before the call is made


@dataclass(frozen=True)
class Call:
    """One call that changes something below the watched folder.

    number: counted from 1. name: write, create, fsync, rename, link, unlink, mkdir, rmdir, symlink,
    mknod, truncate, ftruncate, fallocate, ... path: absolute; of a rename or link the old name, target
    the new one. Where the trace was recorded (`record`): offset and data of a write, the text of a
    symlink as data, and its result.
    """

    number: int
    name: str
    path: str
    target: str | None = None
    offset: int | None = None
    length: int | None = None
    data: bytes | None = None
    truncates: bool = False
    result: int | None = None


Decide = Callable[[Call], Action | int]


@dataclass
class Traced:
    """exit: the child's exit code, minus a signal's number. calls: all that changed something."""

    exit: int = 0
    calls: list[Call] = field(default_factory=list)


def go_on(call: Call) -> Action:
    return Action.GO_ON


def kill_at(number: int) -> Decide:
    """Dies instead of making the call with that number."""
    return lambda call: Action.KILL if call.number == number else Action.GO_ON


def run_traced(
    work: Callable[[], int], root: Path, decide: Decide = go_on, *, record: bool = False
) -> Traced:
    """Fork, run `work` in the child and watch it; its return value is its exit code.

    What it raises is printed, and its exit code is 70. The caller must have no other children: the
    tracer waits for any. No other thread may run. Whatever the child started ends with a KILL too.

    Raises:
        OSError: tracing is not permitted here.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _traced_child(work)
    return _Tracer(child, os.path.realpath(root), decide, record).run()


def _traced_child(work: Callable[[], int]) -> NoReturn:
    try:
        ptrace.trace_me()
    except OSError:
        os._exit(_UNTRACED)  # before it stops: nobody would wake it
    code = 70
    try:
        os.kill(os.getpid(), signal.SIGSTOP)
        ptrace.install_filter(_CALLS)
        code = work()
    except BaseException:  # noqa: BLE001 - the outermost frame of the child
        traceback.print_exc()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def permitted() -> bool:
    """Whether this machine lets a process trace its child, and shows what it does."""
    if not AVAILABLE:
        return False
    try:
        done = run_traced(_make_root, Path("/"))
    except OSError:
        return False
    return done.exit == 0 and [call.name for call in done.calls] == ["mkdir"]


def _make_root() -> int:
    """A call that fails, and is seen."""
    try:
        Path("/").mkdir()
    except OSError:
        return 0
    return 1


class _Tracer:
    def __init__(self, child: int, root: str, decide: Decide, record: bool) -> None:
        self._child, self._root, self._decide, self._record = child, root, decide, record
        self._known: set[int] = {child}
        self._pending: dict[int, tuple[Call, int]] = {}  # and the descriptor that it writes to
        self._killed = False
        self._result = Traced()

    def run(self) -> Traced:
        _, status = os.waitpid(self._child, 0)
        if not os.WIFSTOPPED(status):
            raise OSError("the child could not be traced")
        ptrace.ptrace(ptrace.PTRACE_SETOPTIONS, self._child, 0, _OPTIONS)
        ptrace.ptrace(ptrace.PTRACE_CONT, self._child, 0, 0)
        while True:
            try:
                pid, status = os.waitpid(-1, _WALL)
            except ChildProcessError:
                return self._result
            if os.WIFSTOPPED(status):
                try:
                    self._stopped(pid, status)
                except ProcessLookupError:
                    continue  # killed while it was stopped
                continue
            self._known.discard(pid)  # its number may come again
            if pid == self._child:
                self._result.exit = os.waitstatus_to_exitcode(status)

    def _stopped(self, pid: int, status: int) -> None:
        event, number = status >> 16, os.WSTOPSIG(status)
        first = pid not in self._known
        self._known.add(pid)
        if self._killed:
            ptrace.kill(pid)  # born in the moment of the kill
        elif event == _EVENT_SECCOMP:
            self._entered(pid)
        elif number == signal.SIGTRAP | 0x80:
            self._left(pid)
            ptrace.ptrace(ptrace.PTRACE_CONT, pid, 0, 0)
        elif event or (first and number == signal.SIGSTOP):
            ptrace.ptrace(ptrace.PTRACE_CONT, pid, 0, 0)
        else:
            ptrace.ptrace(ptrace.PTRACE_CONT, pid, 0, 0 if number == signal.SIGTRAP else number)

    def _entered(self, pid: int) -> None:
        registers = ptrace.registers(pid)
        call, descriptor = self._describe(pid, registers)
        if call is None:
            ptrace.ptrace(ptrace.PTRACE_CONT, pid, 0, 0)
            return
        self._result.calls.append(call)
        action = self._decide(call)
        if action is Action.KILL:
            self._killed = True
            for known in self._known:
                ptrace.kill(known)
        elif isinstance(action, int):
            registers[ptrace.ORIG_RAX] = ptrace.MASK  # no such call: it is skipped
            registers[ptrace.RAX] = -action & ptrace.MASK
            ptrace.set_registers(pid, registers)
            ptrace.ptrace(ptrace.PTRACE_CONT, pid, 0, 0)
        elif self._record:
            self._pending[pid] = call, descriptor
            ptrace.ptrace(ptrace.PTRACE_SYSCALL, pid, 0, 0)
        else:
            ptrace.ptrace(ptrace.PTRACE_CONT, pid, 0, 0)

    def _left(self, pid: int) -> None:
        """The call was made: keep what it answered, and the bytes that a write left in its file."""
        call, descriptor = self._pending.pop(pid)
        result = ptrace.signed(ptrace.registers(pid)[ptrace.RAX])
        data = None
        if call.name == "write" and result > 0:
            # by its descriptor: the file may have no name any more
            with Path(f"/proc/{pid}/fd/{descriptor}").open("rb") as file:
                data = os.pread(file.fileno(), result, call.offset or 0)
        elif call.name == "symlink" and result == 0:
            data = os.fsencode(os.readlink(f"/proc/{pid}/root{call.path}"))  # noqa: PTH115
        self._result.calls[call.number - 1] = replace(call, data=data, result=result)

    def _describe(self, pid: int, registers: list[int]) -> tuple[Call | None, int]:
        """The call and the descriptor that it changes (-1: none). None: nothing below the root."""
        raw = _CALLS[registers[ptrace.ORIG_RAX]]
        arguments = [registers[index] for index in ptrace.ARGUMENTS]
        number = len(self._result.calls) + 1
        offset = length = target = None
        truncates, descriptor = False, -1
        name = _PLAIN.get(raw, raw)
        if raw in _ON_DESCRIPTOR or raw == "copy_file_range":
            descriptor = ptrace.signed32(arguments[2 if raw == "copy_file_range" else 0])
            path = _link(pid, f"fd/{descriptor}")
            if raw in ("pwrite64", "pwritev", "pwritev2"):
                offset = arguments[3]
            elif name == "write":
                offset = _position(pid, descriptor)
                if raw == "copy_file_range" and arguments[3]:
                    offset = ptrace.word(pid, arguments[3])
            if raw == "ftruncate":
                length = arguments[1]
            elif raw == "fallocate":
                offset, length = arguments[2], arguments[3]
        else:
            pairs = _ON_PATHS[raw]
            path = _path(pid, arguments, pairs[0])
            if len(pairs) == 2:
                target = _path(pid, arguments, pairs[1])
            if raw == "truncate":
                length = arguments[1]
            if name == "create":
                flags = _flags(pid, raw, arguments)
                if not flags & _CREATING:
                    return None, -1
                truncates = bool(flags & os.O_TRUNC)
            if raw == "unlinkat":
                name = "rmdir" if arguments[2] & _AT_REMOVEDIR else "unlink"
        if not (self._inside(path) or (target is not None and self._inside(target))):
            return None, -1
        call = Call(number, name, path, target, offset, length, None, truncates)
        return call, descriptor

    def _inside(self, path: str) -> bool:
        return path == self._root or path.startswith(self._root.rstrip("/") + "/")


def _flags(pid: int, raw: str, arguments: list[int]) -> int:
    if raw == "creat":
        return _CREATING
    if raw == "openat2":
        return ptrace.word(pid, arguments[2])
    return arguments[1 if raw == "open" else 2]


def _path(pid: int, arguments: list[int], place: tuple[int | None, int]) -> str:
    folder, name = place
    text = ptrace.text(pid, arguments[name])
    if text.startswith("/"):
        return os.path.normpath(text)
    descriptor = _AT_FDCWD if folder is None else ptrace.signed32(arguments[folder])
    start = _link(pid, "cwd" if descriptor == _AT_FDCWD else f"fd/{descriptor}")
    return os.path.normpath(os.path.join(start, text))  # noqa: PTH118 - of another process


def _link(pid: int, name: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/{name}")  # noqa: PTH115
    except OSError:
        return ""  # not open: the call will fail by itself


def _position(pid: int, descriptor: int) -> int:
    for line in Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().splitlines():
        if line.startswith("flags:") and int(line.split()[1], 8) & os.O_APPEND:
            return os.stat(f"/proc/{pid}/fd/{descriptor}").st_size  # noqa: PTH116
        if line.startswith("pos:"):
            position = int(line.split()[1])
    return position
