"""ptrace and seccomp through libc, and the memory of another process. Linux, x86-64."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
from collections.abc import Collection, Sequence
from pathlib import Path

AVAILABLE = platform.system() == "Linux" and platform.machine() == "x86_64"
# where the registers that a system call uses lie
RAX, ORIG_RAX = 10, 15
ARGUMENTS = (14, 13, 12, 7, 9, 8)
MASK = (1 << 64) - 1

PTRACE_TRACEME, PTRACE_CONT, PTRACE_SYSCALL = 0, 7, 24
PTRACE_SETOPTIONS = 0x4200
PTRACE_GETREGSET, PTRACE_SETREGSET = 0x4204, 0x4205
_NT_PRSTATUS = 1
_REGISTERS = struct.Struct("27Q")


def read(pid: int, address: int, length: int) -> bytes:
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        return os.pread(memory.fileno(), length, address)


def word(pid: int, address: int) -> int:
    return int.from_bytes(read(pid, address, 8), "little")


def text(pid: int, address: int) -> str:
    """The string at an address, in pieces that do not cross a page (the next may not be there)."""
    data = b""
    while b"\0" not in data and len(data) < 8192:
        data += read(pid, address + len(data), 4096 - (address + len(data)) % 4096)
    return os.fsdecode(data.split(b"\0")[0])


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def signed32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    library.ptrace.restype = ctypes.c_long
    return library


_LIBC = _libc() if AVAILABLE else None


def ptrace(request: int, pid: int, address: int, data: int) -> None:
    assert _LIBC is not None
    if _LIBC.ptrace(request, pid, address, data) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def registers(pid: int) -> list[int]:
    buffer = ctypes.create_string_buffer(_REGISTERS.size)
    vector = _Vector(ctypes.addressof(buffer), len(buffer))
    ptrace(PTRACE_GETREGSET, pid, _NT_PRSTATUS, ctypes.addressof(vector))
    return list(_REGISTERS.unpack(buffer.raw))


def set_registers(pid: int, values: Sequence[int]) -> None:
    buffer = ctypes.create_string_buffer(_REGISTERS.pack(*values), _REGISTERS.size)
    vector = _Vector(ctypes.addressof(buffer), _REGISTERS.size)
    ptrace(PTRACE_SETREGSET, pid, _NT_PRSTATUS, ctypes.addressof(vector))


def trace_me() -> None:
    """The calling process is traced by its parent from here on."""
    ptrace(PTRACE_TRACEME, 0, 0, 0)


def install_filter(calls: Collection[int]) -> None:
    """The calls with these numbers stop for the tracer, all others run as ever; children too."""
    load, equal, answer = 0x20, 0x15, 0x06
    trace, allow = 0x7FF00000, 0x7FFF0000
    lines = [(load, 0, 0, 0)]  # the call's number
    lines += [(equal, len(calls) - place, 0, number) for place, number in enumerate(calls)]
    lines += [(answer, 0, 0, allow), (answer, 0, 0, trace)]
    code = b"".join(struct.pack("<HBBI", *line) for line in lines)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(lines), ctypes.addressof(buffer))
    library = _libc()
    no_new_privileges, set_seccomp, filtered = 38, 22, 2
    if library.prctl(no_new_privileges, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs was refused")
    if library.prctl(set_seccomp, filtered, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the filter was refused")
