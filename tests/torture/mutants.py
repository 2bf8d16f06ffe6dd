"""Damaged and hostile versions of a small valid file, the same for the same seed; and files that are none.

A mutant is bytes, or a function that puts something else in the file's place: a folder, a pipe, a link.
"""

from __future__ import annotations

import json
import os
import random
import resource
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Undo = Callable[[], None] | None
Place = Callable[[Path], Undo]

MAGICS = (
    *(b"\x93NUMPY\x01\x00", b"PK\x03\x04", b"PK\x05\x06", b"PAR1", b"\x89PNG\r\n\x1a\n", b"GIF89a"),
    *(b"\xff\xd8\xff\xe0", b"RIFF", b"OggS", b"fLaC", b"II*\0", b"BM", b"P6\n", b"%PDF-1.7"),
    *(b"\x80\x04\x95", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x7fELF", b"\x08\x0a\x12\x07"),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"SQLite format 3\0", b"<?xml", b"#!/bin/sh\n", b"%!PS-Adobe"),
)
_BYTES = (0, 1, 0x7F, 0x80, 0xFF, 0x20, 0x0A)
_WORDS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 1 << 20, 1 << 31, (1 << 31) - 1, (1 << 32) - 1)
_LONG_WORDS = (*_WORDS, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 255, 65_536, 2**31 - 1, 2**31, 2**53, 2**63, 10**30),
    *(0.0, -0.5, 1e-300, 1e300, "", "x", "0", "../../x", "/etc/passwd", "a\0b", "é", "x" * 5000),
    *([], {}, [[]], [{}], [None], ["x"], {"": 0}, [0] * 1000, [1, 2], [[1, 2], [3]]),
    *("NaN", "__class__", "%s%n", "{0.__class__}", "-1", "\n", "\ud7ff", "true"),
)


@dataclass(frozen=True)
class Mutant:
    """content: of the file; place: instead, what puts itself there and may give back how to undo it."""

    name: str
    content: bytes = b""
    place: Place | None = None
    rename: str = ""  # of the file, where the name is what is wrong

    def put(self, path: Path) -> Undo:
        if self.place is not None:
            return self.place(path)
        path.write_bytes(self.content)
        return None


def mutants(
    content: bytes, rng: random.Random, count: int, others: Iterator[bytes] | None = None
) -> Iterator[Mutant]:
    """`count` mutants of any file. others: contents of other kinds of file, to be given its name."""
    made = 0
    for mutant in _systematic(content, rng, count // 3):
        yield mutant
        made += 1
    for number, other in enumerate(others or ()):
        yield Mutant(f"other kind {number}", other)
        made += 1
    while made < count:
        data, names = content, []
        for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
            name, data = _damaged(data, rng)
            names.append(name)
        yield Mutant(", ".join(names), data)
        made += 1


def _systematic(content: bytes, rng: random.Random, most: int) -> Iterator[Mutant]:
    size = len(content)
    yield Mutant("empty")
    for number, magic in enumerate(MAGICS):
        yield Mutant(f"magic {number}", magic + content[len(magic) :])
        yield Mutant(f"magic {number} alone", magic)
    for tail in (b"\0", b"\n", b"\xff" * 9, bytes(4096), content, b"PK\x05\x06" + bytes(18)):
        yield Mutant(f"{len(tail)} trailing bytes", content + tail)
    for filler in (b"\0", b"\xff", b" ", b"[", b"a"):
        yield Mutant(f"only {filler!r}", filler * size)
    lengths = list(range(1, size))
    if len(lengths) > most:
        inner = rng.sample(lengths[most // 4 : -most // 4], most - 2 * (most // 4))
        lengths = lengths[: most // 4] + sorted(inner) + lengths[-most // 4 :]
    for length in lengths:
        yield Mutant(f"cut at {length}", content[:length])


def _damaged(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One random change."""
    size = len(data)
    if size == 0:
        return "filled", rng.randbytes(rng.randrange(1, 64))
    # headers and directories are worth more than the middle
    near = rng.choice((64, 512, size))
    at = (
        rng.randrange(min(near, size))
        if rng.random() < 0.7
        else size - 1 - rng.randrange(min(near, size))
    )
    length = min(rng.choice((1, 2, 4, 8, 16, 100)), size - at)
    kind = rng.randrange(9)
    if kind in (0, 1):
        bit = rng.randrange(8)
        return f"bit {bit} of {at}", data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
    if kind == 2:
        value = rng.choice(_BYTES)
        return f"byte {at} = {value}", data[:at] + bytes([value]) + data[at + 1 :]
    if kind in (3, 4):
        width = rng.choice((2, 4, 8))
        order = rng.choice(("little", "big"))
        value = rng.choice(_LONG_WORDS if width == 8 else _WORDS) % (1 << 8 * width)
        word = value.to_bytes(width, order)
        return f"{order} word {at} = {value}", data[:at] + word + data[at + width :]
    if kind == 5:
        return f"{length} bytes removed at {at}", data[:at] + data[at + length :]
    if kind == 6:
        return f"{length} bytes put in at {at}", data[:at] + rng.randbytes(length) + data[at:]
    if kind == 7:
        times = rng.choice((1, 2, 50))
        return f"{length} bytes again at {at}", data[:at] + data[at : at + length] * times + data[
            at:
        ]
    other = rng.randrange(size)
    part = data[other : other + length]
    return f"{length} bytes of {other} at {at}", data[:at] + part + data[at + len(part) :]


def json_mutants(value: Any, rng: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """JSON texts: odd values at random places of `value`, missing and extra keys, and no JSON at all."""
    text = json.dumps(value)
    yield from json_texts(text)
    for _ in range(count):
        copy = json.loads(text)
        places = list(_places(copy))
        names = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            owner, key = rng.choice(places)
            names.append(_change(owner, key, rng))
        yield "; ".join(names), json.dumps(copy).encode()


def json_texts(text: str) -> Iterator[tuple[str, bytes]]:
    """What strict JSON is not, and JSON that takes long or much."""
    body = text.strip()
    deep = 200_000
    inner = body[1:-1].strip()
    more = f", {inner}" if inner else ""
    yield "repeated keys", f"{{{inner}{more}}}".encode()
    for name in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000, "0x10", "01", "+1"):
        yield f"a value {name[:20]}", f'{{"zz": {name}{more}}}'.encode()
        yield f"all of it {name[:20]}", name.encode()
    yield "deep lists", b"[" * deep
    yield "deep closed lists", b"[" * deep + b"]" * deep
    yield "deep objects", b'{"a":' * deep + b"1" + b"}" * deep
    yield "deep value", f'{{"zz": {"[" * 50_000}{"]" * 50_000}{more}}}'.encode()
    yield "a lone surrogate", f'{{"zz": "\\ud800"{more}}}'.encode()
    yield "a lone surrogate key", f'{{"\\udfff": 1{more}}}'.encode()
    yield "BOM", b"\xef\xbb\xbf" + body.encode()
    yield "UTF-16", body.encode("utf-16")
    yield "UTF-16 without a mark", body.encode("utf-16-le")
    yield "UTF-32", body.encode("utf-32")
    yield "latin-1", body.encode() + b"\xe9"
    yield "NUL", body.encode() + b"\0"
    yield "two values", f"{body} {body}".encode()
    yield "a comment", f"/* x */ {body}".encode()
    yield "single quotes", body.replace('"', "'").encode()
    yield "trailing comma", f"{body[:-1]},{body[-1:]}".encode()
    keys = ",".join(f'"{number:x}":0' for number in range(70_000))
    yield "many keys", f"{{{keys}}}".encode()
    yield "many keys, the last again", f'{{{keys},"{69_999:x}":1}}'.encode()
    yield "many empty objects", b"[" + b"{}," * 300_000 + b"{}]"
    yield "a long text", f'{{"zz": "{"x" * 1_000_000}"{more}}}'.encode()
    for kind in ("null", "true", "1", '"x"', "[]", "{}", "[{}]", ""):
        yield f"only {kind!r}", kind.encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key or index) of every value inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def _change(owner: Any, key: Any, rng: random.Random) -> str:
    kind = rng.randrange(6)
    there = key in owner if isinstance(owner, dict) else key < len(owner)
    if not there:
        return "nothing"
    if kind == 0:
        del owner[key]
        return f"no {key}"
    if kind == 1 and isinstance(owner, dict):
        owner[rng.choice(("zz", "", f"{key} ", f"../{key}", f"{key}\0", "__proto__"))] = owner[key]
        return f"beside {key}"
    if kind == 2 and isinstance(owner[key], int | float) and not isinstance(owner[key], bool):
        owner[key] = rng.choice(
            (-owner[key], owner[key] + 1, owner[key] * 2, owner[key] * 10**6, 0)
        )
        return f"another number {key}"
    value = rng.choice(ODD_VALUES)
    owner[key] = value
    return f"{key} = {ascii(value)[:20]}"


def no_files(content: bytes, outside: Path) -> Iterator[Mutant]:
    """What is no regular file, or not where it seems to be. outside: a folder beyond the file's."""

    def folder(path: Path) -> Undo:
        path.mkdir()
        return path.rmdir

    def pipe(path: Path) -> Undo:
        os.mkfifo(path)
        return None

    def listening(path: Path) -> Undo:
        # a socket's name may have 107 bytes: bind to a short one
        here = Path.cwd()
        os.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
        os.chdir(here)
        return None

    def dangling(path: Path) -> Undo:
        path.symlink_to("nothing-there")
        return None

    def loop(path: Path) -> Undo:
        path.symlink_to(path.name)
        return None

    def escaping(path: Path) -> Undo:
        target = outside / f"outside{path.suffix}"
        target.write_bytes(content)
        path.symlink_to(target)
        return None

    def device(name: str) -> Place:
        def place(path: Path) -> Undo:
            path.symlink_to(name)
            return None

        return place

    def unreadable(path: Path) -> Undo:
        path.write_bytes(content)
        path.chmod(0)
        if os.geteuid() != 0:
            return lambda: path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        os.seteuid(65534)  # root reads everything
        return lambda: os.seteuid(0)

    def sparse(path: Path) -> Undo:
        soft, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        with path.open("wb") as file:
            file.write(content)
            file.truncate(1 << 40)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, most))
        return None

    kinds: dict[str, Place] = {
        "a folder": folder,
        "a FIFO": pipe,
        "a socket": listening,
        "a dangling link": dangling,
        "a link to itself": loop,
        "a link to the outside": escaping,
        "a link to /dev/zero": device("/dev/zero"),
        "a link to /dev/null": device("/dev/null"),
        "a link to /proc/self/mem": device("/proc/self/mem"),
        "unreadable": unreadable,
        "a terabyte of holes": sparse,
    }
    for name, place in kinds.items():
        yield Mutant(name, place=place)
    for name, change in _CHANGES.items():
        yield Mutant(f"changed while read: {name}", place=_changing(content, change))


_CHANGES: dict[str, tuple[int, ...]] = {"cut": (0,), "halved": (2,), "grown": (-1,), "removed": ()}


def _changing(content: bytes, shares: tuple[int, ...]) -> Place:
    """Another process changes the file, again and again, until it is stopped."""

    def place(path: Path) -> Undo:
        path.write_bytes(content)
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                _change_for_ever(path, content, shares)
            os._exit(0)

        def stop() -> None:
            os.kill(child, 9)
            os.waitpid(child, 0)

        return stop

    return place


def _change_for_ever(path: Path, content: bytes, shares: tuple[int, ...]) -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        with suppress(OSError):
            if not shares:
                path.unlink(missing_ok=True)
            for share in shares:
                size = len(content) * 3 if share < 0 else len(content) // share if share else 0
                os.truncate(path, size)
            if path.exists():
                with path.open("r+b") as file:
                    file.write(content)
            else:
                path.write_bytes(content)
