"""Weights, graphs and records that lie on purpose."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from tests.torture.mutants import Mutant, json_mutants, json_texts


def safetensors_forged(content: bytes, rng: random.Random, count: int) -> Iterator[Mutant]:
    """Headers that say something else than the file has."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    data = content[8 + length :]

    def whole(text: bytes, claimed: int | None = None) -> bytes:
        size = len(text) if claimed is None else claimed
        return size.to_bytes(8, "little") + text + data

    for claimed in (0, 1, length - 1, length + 1, 1 << 20, 1 << 30, (1 << 63) - 1, (1 << 64) - 1):
        yield Mutant(f"a header of {claimed}", whole(content[8 : 8 + length], claimed))
    yield Mutant("a true header of 32 MiB", whole(content[8 : 8 + length] + b" " * (32 << 20)))
    for name, text in json_texts(json.dumps(header)):
        yield Mutant(f"header: {name}", whole(text))
    names = [name for name in header if name != "__metadata__"]
    first = names[0]
    for odd in (
        "../x",
        "/etc/passwd",
        "a\0b",
        "",
        "a" * 600,
        "é",
        "a b",
        ".",
        "__metadata__",
        "\ud7ff",
    ):
        changed = {odd if name == first else name: entry for name, entry in header.items()}
        yield Mutant(f"a name {odd[:10]!a}", whole(json.dumps(changed).encode()))
    for kind in ("F4", "F8_E8M0", "C64", "f32", "F64", "I8", "BOOL", "O", "", "BF16", "F32 "):
        entry = header[first] | {"dtype": kind}
        yield Mutant(f"dtype {kind}", whole(json.dumps(header | {first: entry}).encode()))
    for shape in (
        [-1, 3],
        [1 << 62],
        [1 << 31, 1 << 31],
        [0],
        [1.0],
        [True],
        ["1"],
        [[1]],
        [1] * 40,
        [],
    ):
        entry = header[first] | {"shape": shape}
        yield Mutant(f"shape {shape!s:.20}", whole(json.dumps(header | {first: entry}).encode()))
    for offsets in (
        [0, 0],
        [-4, 0],
        [1 << 50, 1 << 50],
        [4, 0],
        [0, len(data) + 4],
        [0, 1 << 63],
        [0],
    ):
        entry = header[first] | {"data_offsets": offsets}
        yield Mutant(f"offsets {offsets}", whole(json.dumps(header | {first: entry}).encode()))
    all_same = {
        name: entry | {"data_offsets": [0, 4]} for name, entry in header.items() if name in names
    }
    yield Mutant("all over each other", whole(json.dumps(all_same).encode()))
    empty = {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(8000)}
    yield Mutant("8000 empty tensors", whole(json.dumps(empty | header).encode()))
    for pattern in (b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\xff\xff"):
        yield Mutant(f"values {pattern.hex()}", content[: 8 + length] + pattern * (len(data) // 4))
        at = 8 + length + 4 * rng.randrange(max(1, len(data) // 4))
        yield Mutant(f"one value {pattern.hex()}", content[:at] + pattern + content[at + 4 :])
    for name, text in json_mutants(header, rng, count):
        yield Mutant(f"header: {name}", whole(text))


def zip_json(
    content: bytes, ends: tuple[str, ...], rng: random.Random, count: int
) -> Iterator[Mutant]:
    """The archive again with one of its JSON records changed."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}

    def again(changed: dict[str, bytes], mode: int = zipfile.ZIP_STORED) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, data in changed.items():
                archive.writestr(zipfile.ZipInfo(name), data, mode)
        return out.getvalue()

    root = next(iter(records)).split("/")[0]
    pickle = b"\x80\x04cbuiltins\nexec\n."
    yield Mutant("compressed", again(records, zipfile.ZIP_DEFLATED))
    yield Mutant("a pickle", again({f"{root}/data.pkl": pickle, f"{root}/version": b"3"}))
    yield Mutant("a pickle beside", again(records | {f"{root}/data.pkl": pickle}))
    yield Mutant("many records", again(records | {f"{root}/x{n}": b"" for n in range(30_000)}))
    for odd in ("../../x", "/etc/x", f"{root}/../../x", "other/x", f"{root}/a\0b", f"{root}/"):
        yield Mutant(f"a record {odd!a}", again(records | {odd: b"x"}))
    for end in ends:
        name = next(n for n in records if n.endswith(end))
        for label, text in json_texts(records[name].decode()):
            yield Mutant(f"{end}: {label}", again(records | {name: text}))
        for label, text in json_mutants(json.loads(records[name]), rng, count):
            yield Mutant(f"{end}: {label}", again(records | {name: text}))
    for name in records:
        yield Mutant(f"no {name}", again({n: d for n, d in records.items() if n != name}))
        yield Mutant(f"empty {name}", again(records | {name: b""}))


def pt2_forged(content: bytes) -> Iterator[Mutant]:
    """Steps that ask for more than there is."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name = next(n for n in records if n.endswith("models/model.json"))

    def program(change: Callable[[dict[str, Any]], None]) -> bytes:
        value = json.loads(records[name])
        change(value["graph_module"]["graph"])
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for record, data in records.items():
                archive.writestr(record, json.dumps(value).encode() if record == name else data)
        return out.getvalue()

    def first(target: str, *arguments: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
        """A step more, whose result nobody uses."""

        def change(graph: dict[str, Any]) -> None:
            inputs = [{"name": f"a{n}", "arg": arg, "kind": 1} for n, arg in enumerate(arguments)]
            step = {
                "target": target,
                "inputs": inputs,
                "metadata": {},
                "is_hop_single_tensor_return": None,
            }
            graph["nodes"].insert(0, step | {"outputs": [{"as_tensor": {"name": "zz"}}]})

        return change

    def number(value: int) -> dict[str, Any]:
        return {"as_int": value}

    for size in (1 << 20, 1 << 30, 1 << 36, 1 << 62):
        yield Mutant(
            f"full {size}",
            program(first("torch.ops.aten.full.default", {"as_ints": [size]}, number(1))),
        )
        yield Mutant(
            f"arange {size}", program(first("torch.ops.aten.arange.default", number(size)))
        )
        yield Mutant(f"eye {size}", program(first("torch.ops.aten.eye.default", number(size))))

    def squares(graph: dict[str, Any]) -> None:
        nodes = []
        for n in range(80):
            before = {"as_sym_int": {"as_name": f"q{n - 1}"}} if n else number(3)
            inputs = [{"name": k, "arg": before, "kind": 1} for k in "ab"]
            step = {"target": "_operator.mul", "inputs": inputs, "metadata": {}}
            step["is_hop_single_tensor_return"] = None
            nodes.append(step | {"outputs": [{"as_sym_int": {"as_name": f"q{n}"}}]})
        graph["nodes"][:0] = nodes

    yield Mutant("a number squared 80 times", program(squares))


def json_forged(content: bytes, rng: random.Random, count: int) -> Iterator[Mutant]:
    for name, text in json_mutants(json.loads(content), rng, count):
        yield Mutant(name, text)
