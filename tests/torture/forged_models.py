"""Weights, graphs and records that lie on purpose."""

from __future__ import annotations

import io
import json
import os
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.torture.mutants import ODD_VALUES, Mutant, json_mutants, json_texts


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


def onnx_forged(content: bytes) -> Iterator[Mutant]:
    """Graphs that leave their folder, never end, or ask for more than there is."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def model(
        nodes: list[Any], initializers: list[Any] = (), out: int = TensorProto.FLOAT
    ) -> bytes:  # type: ignore[assignment]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
        y = helper.make_tensor_value_info("y", out, None)
        graph = helper.make_graph(nodes, "g", [x], [y], list(initializers))
        imports = [helper.make_opsetid("", 18), helper.make_opsetid("evil", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()

    def whole(name: str, values: list[int]) -> Any:
        return numpy_helper.from_array(np.array(values, np.int64), name)

    node = helper.make_node
    for count in (1 << 20, 300_000_000, 1 << 40):
        shape = whole("s", [count])
        yield Mutant(
            f"constant of {count}", model([node("ConstantOfShape", ["s"], ["y"])], [shape])
        )
        yield Mutant(
            f"expand to {count}",
            model([node("Expand", ["x", "s"], ["y"])], [whole("s", [count, 1, 2])]),
        )
        made = node("Constant", [], ["s"], value_ints=[count, 1])
        yield Mutant(f"tile {count}", model([made, node("Tile", ["x", "s"], ["y"])]))
        twice = [node("Mul", ["s", "s"], ["t"]), node("ConstantOfShape", ["t"], ["y"])]
        yield Mutant(f"constant of {count} squared", model(twice, [shape]))
        ends = [whole("a", []), whole("b", []), whole("c", [])]
        for tensor, value in zip(ends, (0, count, 1), strict=True):
            tensor.CopyFrom(numpy_helper.from_array(np.array(value, np.int64), tensor.name))
        yield Mutant(
            f"range to {count}",
            model([node("Range", ["a", "b", "c"], ["y"])], ends, TensorProto.INT64),
        )
    yield Mutant("an unknown operator", model([node("Nothing", ["x"], ["y"])]))
    yield Mutant("another domain", model([node("Add", ["x", "x"], ["y"], domain="evil")]))
    yield Mutant("random numbers", model([node("RandomNormal", [], ["y"], shape=[1 << 30])]))
    yield Mutant(
        "a padding", model([node("Pad", ["x", "p"], ["y"])], [whole("p", [0, 0, 1 << 40, 0])])
    )
    yield Mutant("a large kernel", model([node("MaxPool", ["x"], ["y"], kernel_shape=[1 << 40])]))
    yield Mutant("itself", model([node("Add", ["y", "x"], ["y"])]))
    yield Mutant("no output", model([node("Add", ["x", "x"], ["z"])]))
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Identity", ["v"], ["w"])],
        "b",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("w", TensorProto.FLOAT, None)],
    )  # fmt: skip
    yield Mutant("a loop without an end", model([node("Loop", ["", "", "x"], ["y"], body=body)]))
    branch = helper.make_graph(
        [node("Identity", ["x"], ["t"])], "t", [], [helper.make_tensor_value_info("t", 1, None)]
    )
    yes = numpy_helper.from_array(np.array(True), "c")
    yield Mutant(
        "a branch", model([node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)], [yes])
    )
    for dims, data in (
        ([1 << 40], b""),
        ([-1], b""),
        ([2], b"\0" * 4),
        ([2], b"\0" * 16),
        ([1 << 20] * 3, b""),
    ):
        tensor = TensorProto(name="c", data_type=1, dims=dims, raw_data=data)
        yield Mutant(
            f"weights {dims} in {len(data)} bytes",
            model([node("Add", ["x", "c"], ["y"])], [tensor]),
        )
    many = [numpy_helper.from_array(np.zeros(1, np.float32), f"w{n}") for n in range(2000)]
    yield Mutant("2000 weights", model([node("Add", ["x", "w0"], ["y"])], many))
    chain = [node("Add", [f"t{n}" if n else "x", "x"], [f"t{n + 1}"]) for n in range(20_000)]
    yield Mutant("20,000 operators", model([*chain, node("Identity", ["t20000"], ["y"])]))
    deep = onnx.ModelProto()
    deep.ParseFromString(content)
    yield Mutant("two graphs", content + content)
    yield Mutant("a deep message", b"\x3a" + _nested(2000))
    for location in ("../secret", "/etc/passwd", "a/../b", "", ".", "x\0y", "data\n", "model.onnx"):
        yield Mutant(f"weights in {location!a}", _outside(model, location))
    for kind in ("link", "hard link", "folder", "FIFO", "short", "far", "missing", "twice"):
        yield Mutant(f"data: {kind}", place=_data(model, kind))


def _outside(
    model: Callable[..., bytes], location: str, offset: int = 0, count: int = 2, times: int = 1
) -> bytes:
    from onnx import TensorProto, helper

    weights = []
    for number in range(times):
        tensor = TensorProto(name=f"c{number}", data_type=1, dims=[count], data_location=1)
        for key, value in (
            ("location", location),
            ("offset", str(offset)),
            ("length", str(4 * count)),
        ):
            tensor.external_data.add(key=key, value=value)
        weights.append(tensor)
    return model([helper.make_node("Add", ["x", "c0"], ["y"])], weights)


def _data(model: Callable[..., bytes], kind: str) -> Callable[[Path], Callable[[], None] | None]:
    """model.onnx with a second file that is not one of its own."""

    def place(path: Path) -> Callable[[], None] | None:
        second = path.with_name("second.bin")
        secret = path.with_name("secret.bin")
        secret.write_bytes(bytes(4096))
        far = {"far": 1 << 40, "short": 4092}.get(kind, 0)
        path.write_bytes(_outside(model, second.name, far, 2, 1000 if kind == "twice" else 1))
        if kind == "link":
            second.symlink_to(secret)
        elif kind == "hard link":
            second.hardlink_to(secret)
        elif kind == "folder":
            second.mkdir()
        elif kind == "FIFO":
            os.mkfifo(second)
        elif kind != "missing":
            second.write_bytes(bytes(4096))

        def undo() -> None:
            secret.unlink()
            if second.is_dir():
                second.rmdir()
            else:
                second.unlink(missing_ok=True)

        return undo

    return place


def _nested(depth: int) -> bytes:
    body = b""
    for _ in range(depth):
        size, length = len(body) + 0, b""
        while size >= 128:
            length += bytes([size & 127 | 128])
            size >>= 7
        body = b"\x0a" + length + bytes([size]) + body
    size, length = len(body), b""
    while size >= 128:
        length += bytes([size & 127 | 128])
        size >>= 7
    return length + bytes([size]) + body
