"""The graph of a torch.export file as a list of steps, each a named operator of torch and its values.

torch's own loader is not used: it evaluates strings of the file as Python (symbolic sizes, guards,
names in generated code) and falls back to pickles. Here a name is looked up in a table of operators
and everything else is data.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edge_pslora.models.failures import FOREIGN_ERRORS, first_line
from edge_pslora.models.pt2_archive import DTYPES, Archive, bad

EVAL = "call model.eval() before torch.export.export, and save it again"
_ATEN = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
# internal operators that occur in exported graphs; any other with a leading underscore is refused
_INTERNAL = frozenset({"_softmax", "_log_softmax", "_to_copy", "_unsafe_view"})
_ASSERTIONS = ("_assert_", "sym_constrain_range")
_REFUSED = frozenset({"from_file", "set_", "resize_", "resize_as_", "copy_sparse_to_sparse_"})
_SCALARS: dict[str, Callable[..., Any]] = {
    f"_operator.{name}": getattr(operator, name)
    for name in (
        *("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pos"),
        *("eq", "ne", "le", "lt", "ge", "gt", "and_", "or_"),
    )
}
_SCALARS |= {
    f"torch.{name}": getattr(torch, name)
    for name in ("sym_not", "sym_int", "sym_float", "sym_max", "sym_min", "sym_ite", "sym_sum")
}
_SCALARS["math.trunc"] = math.trunc
_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_PLAIN = {"as_int": int, "as_bool": bool, "as_string": str}
_LISTS = {"as_ints": int, "as_bools": bool, "as_strings": str}


@dataclass(frozen=True)
class Ref:
    """A value that an earlier step or an input gave."""

    name: str


@dataclass(frozen=True)
class State:
    """A tensor of the model: its dotted name in the state dict."""

    name: str


@dataclass(frozen=True)
class Step:
    """outputs: a name, or a list of names (None: unused) for operators that give several values."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: str | list[str | None]


@dataclass(frozen=True)
class Program:
    """One tensor in, one tensor out.

    input_shape: a size, or None where any size will do; the first is the batch. state: dotted name
    -> "parameter", "buffer" (in the state dict) or "constant" (not in it).
    """

    input_name: str
    input_shape: tuple[int | None, ...]
    steps: tuple[Step, ...]
    output: Ref
    state: Mapping[str, str]


def parse_program(archive: Archive, path: Path) -> Program:
    """The steps of the file's graph.

    Raises:
        ModelError: operators or inputs that are not supported, or a damaged graph.
    """
    try:
        return _parse(archive, path)
    except FOREIGN_ERRORS as error:
        raise bad(path, "an exported graph", first_line(error)) from error


def _parse(archive: Archive, path: Path) -> Program:
    module = archive.program["graph_module"]
    graph, signature = module["graph"], module["signature"]
    names, state, inputs = _inputs(signature["input_specs"], path)
    missing = [name for name in state if name not in archive.tensors]
    if missing:
        raise bad(path, "every tensor of the graph", f"{missing[0]} missing")
    if len(inputs) != 1:
        remedy = "export a model whose forward takes one float tensor"
        raise bad(path, "one input", f"{len(inputs)}: {', '.join(inputs)}", remedy)
    outputs = [_only(spec) for spec in signature["output_specs"]]
    if [kind for kind, _ in outputs] != ["user_output"]:
        changed = next((k for k, _ in outputs if k.endswith("_mutation")), None)
        found = f"a {changed.replace('_', ' ')}" if changed else f"{len(outputs)} outputs"
        remedy = EVAL if changed else "export a model that returns one tensor"
        raise bad(path, "one output", found, remedy)
    output = _value(outputs[0][1]["arg"], names)
    if not isinstance(output, Ref):
        raise bad(path, "an output that is computed", str(outputs[0][1]))
    shape = _shape(archive, graph["tensor_values"][inputs[0]], path)
    steps = [_step(node, names, path) for node in graph["nodes"]]
    return Program(inputs[0], shape, tuple(s for s in steps if s is not None), output, state)


def _inputs(
    specs: list[dict[str, Any]], path: Path
) -> tuple[dict[str, State], dict[str, str], list[str]]:
    """(graph name -> tensor of the model, its kind by dotted name, graph names of user inputs)."""
    names: dict[str, State] = {}
    state: dict[str, str] = {}
    inputs: list[str] = []
    for kind, spec in map(_only, specs):
        if kind == "user_input":
            inputs.append(spec["arg"]["as_tensor"]["name"])
        elif kind in ("parameter", "buffer", "tensor_constant"):
            name = spec[f"{kind}_name"]
            names[spec["arg"]["name"]] = State(name)
            kept = kind == "parameter" or spec.get("persistent", False)
            state[name] = kind if kept else "constant"
        elif kind != "constant_input":
            remedy = "export a model without custom objects"
            raise bad(path, "parameters, buffers and inputs", kind, remedy)
    return names, state, inputs


def _shape(archive: Archive, meta: dict[str, Any], path: Path) -> tuple[int | None, ...]:
    sizes = [_only(size) for size in meta["sizes"]]
    remedy = "export it with dynamic_shapes=({0: torch.export.Dim('batch')},)"
    if not sizes or sizes[0][0] != "as_expr":
        found = f"a fixed batch of {sizes[0][1]}" if sizes else "a single number"
        raise bad(path, "a batch of any size", found, remedy)
    # the expression is not evaluated: only the name of a lone symbol is looked for
    symbol = re.fullmatch(r"Symbol\('(\w+)'[\w\s=,]*\)|(\w+)", sizes[0][1]["expr_str"])
    limits = archive.program["range_constraints"].get(symbol[1] or symbol[2]) if symbol else None
    if limits is None or (limits["max_val"] is not None and limits["max_val"] < 256):
        found = f"at most {limits['max_val']}" if limits else str(sizes[0][1]["expr_str"])
        raise bad(path, "a batch of any size", found, remedy)
    if DTYPES.get(meta["dtype"]) != torch.float32:
        found = str(DTYPES.get(meta["dtype"])).removeprefix("torch.")
        raise bad(path, "float32 input", found, "export the model in float32")
    return (None, *(size if kind == "as_int" else None for kind, size in sizes[1:]))


def _step(node: dict[str, Any], names: Mapping[str, State], path: Path) -> Step | None:
    target = node["target"]
    call = _SCALARS.get(target) or _aten(target, path)
    if call is None:
        return None
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for given in node["inputs"]:
        value = _value(given["arg"], names)
        if target in _SCALARS or given.get("kind") == 1:
            args.append(value)
        else:
            kwargs[given["name"]] = value
    step = Step(call, tuple(args), kwargs, _outputs(node["outputs"]))
    if isinstance(call, torch._ops.OpOverload):
        _check_call(step, call, path)
    return step


def _aten(target: str, path: Path) -> torch._ops.OpOverload | None:
    """The operator of that name; None for an assertion about sizes, which needs no run."""
    match = _ATEN.fullmatch(target)
    packet = getattr(torch.ops.aten, match[1], None) if match else None
    call = getattr(packet, match[2], None) if match else None
    if match and match[1].startswith(_ASSERTIONS):
        return None
    if target.startswith("torch.ops.higher_order.wrap_with_set_grad"):
        remedy = "export a model whose forward has no torch.no_grad()"
        raise bad(path, "operators of torch.ops.aten", target, remedy)
    hidden = match is not None and match[1].startswith("_") and match[1] not in _INTERNAL
    if not isinstance(call, torch._ops.OpOverload) or hidden or (match and match[1] in _REFUSED):
        raise bad(path, "operators of torch.ops.aten", target, "export a model without it")
    if call._schema.is_mutable and not call._schema.name.endswith("_"):
        raise bad(path, "operators that return their result", target, "export a model without it")
    return call


def _check_call(step: Step, call: torch._ops.OpOverload, path: Path) -> None:
    given = bound(step)
    name = call._schema.name.removeprefix("aten::")
    for argument in call._schema.arguments:
        value = given.get(argument.name)
        if argument.is_write and isinstance(value, State):
            raise bad(path, "weights that stay as they are", f"{name} on {value.name}", EVAL)
    training = given.get("training", given.get("train", False)) is not False
    random = torch.Tag.nondeterministic_seeded in call.tags
    drop = given.get("dropout_p", given.get("p", 0.0) if "train" not in given else 0.0)
    plain = {"train", "training", "dropout_p"} & given.keys()
    if training or (random and not (plain and drop == 0.0)):
        raise bad(path, "the same output for the same input", f"{name} in training mode", EVAL)


def bound(step: Step) -> dict[str, Any]:
    """The operator's arguments by name, defaults filled in."""
    assert isinstance(step.call, torch._ops.OpOverload)
    arguments = step.call._schema.arguments
    values = {a.name: a.default_value for a in arguments if a.has_default_value()}
    values |= dict(zip([a.name for a in arguments], step.args, strict=False))
    return values | dict(step.kwargs)


def _outputs(outputs: list[dict[str, Any]]) -> str | list[str | None]:
    named: list[str | None] = []
    for kind, value in map(_only, outputs):
        if kind == "as_tensors" and len(outputs) == 1:
            return [item["name"] for item in value]
        if kind == "as_tensor":
            named.append(value["name"])
        elif kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
            named.append(value["as_name"])
        elif kind == "as_none":
            named.append(None)
        else:
            raise ValueError(f"an output {kind}")
    return named[0] if len(named) == 1 and named[0] is not None else named


def _value(argument: dict[str, Any], names: Mapping[str, State]) -> Any:
    """An argument as a Python value, a Ref or a State; lists of them."""
    kind, value = _only(argument)
    if kind == "as_none":
        return None
    if kind in ("as_tensor", "as_optional_tensor"):
        return names.get(value["name"]) or Ref(value["name"])
    if kind in ("as_tensors", "as_optional_tensors"):
        return [
            _value(item if "name" not in item else {"as_tensor": item}, names) for item in value
        ]
    if kind in ("as_sym_ints", "as_sym_floats", "as_sym_bools"):
        return [_value({kind.removesuffix("s"): item}, names) for item in value]
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
        inner, found = _only(value)
        return Ref(found) if inner == "as_name" else _value({inner: found}, names)
    if kind in _PLAIN and type(value) is _PLAIN[kind]:
        return value
    if kind in _LISTS and all(type(item) is _LISTS[kind] for item in value):
        return list(value)
    if kind == "as_float":
        return float(value)  # also "Infinity"
    if kind == "as_floats":
        return [float(item) for item in value]
    if kind == "as_scalar_type":
        return DTYPES[value]
    if kind == "as_memory_format":
        return _MEMORY_FORMATS[value]
    if kind == "as_layout" and value == 7:
        return torch.strided
    if kind == "as_device":
        return torch.device("cpu")  # wherever it was exported
    raise ValueError(f"an argument {kind} {value!r}")


def _only(union: dict[str, Any]) -> tuple[str, Any]:
    """The one key and value of a JSON union."""
    ((kind, value),) = union.items()
    return kind, value
