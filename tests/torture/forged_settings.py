"""Settings files that lie on purpose."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tests.torture.mutants import ODD_VALUES, Mutant, json_texts


def config_forged(kind: str) -> Iterator[Mutant]:
    """Settings files: bombs of aliases, tags, dates and numbers that are none."""
    if kind == "json":
        for name, text in json_texts('{"rank": 4, "epochs": 2}'):
            yield Mutant(name, text)
        return
    if kind == "toml":
        for text in (
            "a = " + "[" * 60_000,
            "rank = " + "9" * 6000,
            "x = 1979-99-99",
            "a.b" + ".c" * 9000 + "=1",
        ):
            yield Mutant(text[:20], text.encode())
        yield Mutant("many tables", b"".join(b"[t%d]\n" % n for n in range(40_000)))
        yield Mutant("many keys", b"".join(b"k%d = 1\n" % n for n in range(60_000)))
        return
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)
    )
    yield Mutant("aliases", f"{bomb}rank: *a39\n".encode())
    yield Mutant("a key of aliases", f"{bomb}? *a39\n: 1\n".encode())
    wide = "a0: &a0 {k0: 1}\n" + "".join(
        f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 9)
    )
    yield Mutant("merged keys", f"{wide}<<: *a8\n".encode())
    for tag in (
        "!!python/object/apply:os.system [true]",
        "!!python/name:os.system ''",
        "!x 1",
        "!!binary '%'",
    ):
        yield Mutant(f"tag {tag[:20]}", f"rank: {tag}\n".encode())
    for tag, value in [
        (t, v)
        for t in ("int", "float", "bool", "timestamp", "set", "null")
        for v in ("x", "''", "1_", "[1]")
    ]:
        yield Mutant(f"{tag} {value}", f"rank: !!{tag} {value}\n".encode())
    for value in (
        "2001-99-99",
        "9" * 6000,
        "0x" + "f" * 6000,
        "1:1:1:1:99999",
        ".nan",
        "-.inf",
        "1e400",
        "0b",
        "~",
    ):
        yield Mutant(f"value {value[:20]}", f"rank: {value}\n".encode())
    yield Mutant("deep", b"[" * 50_000)
    yield Mutant("deep blocks", b"".join(b" " * n + b"a:\n" for n in range(1200)))
    yield Mutant("many keys", b"".join(b"k%d: 1\n" % n for n in range(100_000)))
    yield Mutant("one long plain value", b"rank: " + b"x " * 400_000)
    yield Mutant("one long quoted value", b'rank: "' + b"\\x41" * 200_000 + b'"')
    yield Mutant("many documents", b"--- 1\n" * 100_000)
    for value in ODD_VALUES[:30]:
        yield Mutant(f"odd {value!a:.10}", json.dumps({"rank": value}).encode())
