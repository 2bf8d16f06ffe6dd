"""ONNX graphs that lie on purpose."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.torture.mutants import Mutant


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

    node, value = helper.make_node, helper.make_tensor_value_info
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
        for tensor, end in zip(ends, (0, count, 1), strict=True):
            tensor.CopyFrom(numpy_helper.from_array(np.array(end, np.int64), tensor.name))
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
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("v", 1, None)],
        [value("on", TensorProto.BOOL, []), value("w", 1, None)],
    )
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
