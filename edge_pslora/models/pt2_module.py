"""An exported graph as an nn.Module with the names of the original, its layers made whole again.

In the file a layer is gone: what is left is an operator that takes a parameter. Where a parameter
`a.b.weight` is used by one kind of operator only, `a.b` becomes a Linear, Conv, Embedding or norm
again, so that adapters, --target and --head-module find it under the name it had.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from edge_pslora.models.failures import FOREIGN_ERRORS
from edge_pslora.models.pt2_archive import Stored
from edge_pslora.models.pt2_program import Program, Ref, State, Step, bound


@dataclass(frozen=True)
class _Call:
    """Stands in a step for the layer of that dotted name."""

    path: str

    def __call__(self, net: nn.Module, *args: Any) -> Any:
        return net.get_submodule(self.path)(*args)


_MAX_SIZE = 1 << 63


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Ends a run at the first result of more than `most` numbers; results of other kinds are none."""

    def __init__(self, most: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, list | tuple) else (result,):
            if isinstance(value, torch.Tensor) and value.numel() > self.most:
                raise _TooLargeError(f"{func} gives {value.numel()} numbers")
        return result


class _TooLargeError(Exception):
    """A step of the graph asks for more memory than a run may take."""


def too_large(net: ExportedNet, inputs: torch.Tensor, most: int) -> str | None:
    """What gives more than `most` numbers for these inputs; None: nothing does, or nobody can tell.

    Nothing is computed: a graph of a hundred bytes can ask for all memory there is.
    """
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode, _Largest(most):
            net(mode.from_tensor(inputs))
    except _TooLargeError as found:
        return str(found)
    except FOREIGN_ERRORS:
        return None  # sizes that depend on values; the run itself says what is wrong
    return None


class ExportedNet(nn.Module):
    """Runs the steps of a program; parameters and buffers are registered under their own names."""

    def __init__(self, program: Program, tensors: Mapping[str, Stored], *, layers: bool) -> None:
        super().__init__()
        found = find_layers(program, tensors) if layers else {}
        parameters: dict[tuple[Any, ...], nn.Parameter] = {}
        for path, (build, _) in found.items():
            _add_module(self, path, build())
        for name, kind in program.state.items():
            owner, _, leaf = name.rpartition(".")
            module = _owner(self, owner)
            stored = tensors[name]
            if kind == "parameter":
                # one object for tied names; a missing bias is the attribute None until here
                shared = parameters.setdefault(
                    stored.key, nn.Parameter(stored.tensor.clone(), requires_grad=False)
                )
                module.register_parameter(leaf, shared)
            else:
                module.register_buffer(leaf, stored.tensor.clone(), persistent=kind == "buffer")
        paths = {id(step): path for path, (_, steps) in found.items() for step in steps}
        self.steps = tuple(_step(step, paths.get(id(step))) for step in program.steps)
        self.input_name, self.output = program.input_name, program.output
        self.last_use = _last_use(self.steps)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        values: dict[str, Any] = {self.input_name: inputs}
        for number, step in enumerate(self.steps):
            args = [self._value(argument, values) for argument in step.args]
            kwargs = {name: self._value(item, values) for name, item in step.kwargs.items()}
            net = (self,) if isinstance(step.call, _Call) else ()
            result = step.call(*net, *args, **kwargs)
            if isinstance(result, int) and abs(result) >= _MAX_SIZE:
                raise OverflowError(f"a size of {result.bit_length()} bits")
            if isinstance(step.outputs, str):
                values[step.outputs] = result
            else:
                pairs = zip(step.outputs, result, strict=True)
                values |= {name: item for name, item in pairs if name is not None}
            for name in self.last_use[number]:
                if name != self.output.name:
                    values.pop(name, None)
        output: torch.Tensor = values[self.output.name]
        return output

    def _value(self, argument: Any, values: Mapping[str, Any]) -> Any:
        if isinstance(argument, Ref):
            return values[argument.name]
        if isinstance(argument, State):
            owner, _, leaf = argument.name.rpartition(".")
            return getattr(self.get_submodule(owner), leaf)
        if isinstance(argument, list):
            return [self._value(item, values) for item in argument]
        return argument


Found = tuple[Callable[[], nn.Module], list[Step]]  # a layer and the steps that are its calls


def find_layers(program: Program, tensors: Mapping[str, Stored]) -> dict[str, Found]:
    """Dotted name -> the layer there, for every weight that only calls of one layer use."""
    uses: dict[str, list[Step]] = {}
    for step in program.steps:
        for name in _states([*step.args, *step.kwargs.values()]):
            uses.setdefault(name, []).append(step)
    shared = [tensors[name].key for name in program.state]
    found: dict[str, Found] = {}
    for name, kind in program.state.items():
        path, _, leaf = name.rpartition(".")
        steps = uses.get(name, [])
        if kind != "parameter" or leaf != "weight" or not path or not steps:
            continue
        layers = [_layer(step, path, tensors) for step in steps]
        own = {f"{path}.{part}" for part in ("weight", "bias", "running_mean", "running_var")}
        settings = {layer[1] for layer in layers if layer is not None}
        alone = all(set(_states([*s.args, *s.kwargs.values()])) <= own for s in steps)
        users = {id(s) for n in own for s in uses.get(n, [])}
        tied = shared.count(tensors[name].key) > 1
        first = layers[0]
        if first is None or None in layers or len(settings) != 1 or not alone or tied:
            continue
        if users == {id(step) for step in steps}:
            found[path] = first[0], steps
    return found


_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def _layer(
    step: Step, path: str, tensors: Mapping[str, Stored]
) -> tuple[Callable[[], nn.Module], str] | None:
    """(builds the layer of that call, its settings as text), or None for any other operator."""
    if not isinstance(step.call, torch._ops.OpOverload):
        return None
    given = bound(step)
    weight, bias = given.get("weight"), given.get("bias")
    if weight != State(f"{path}.weight") or bias not in (None, State(f"{path}.bias")):
        return None
    shape = tuple(tensors[f"{path}.weight"].tensor.shape)
    kind = step.call._schema.name.removeprefix("aten::")
    flag: dict[str, Any] = {"bias": bias is not None}
    cls: type[nn.Module]
    sizes: tuple[Any, ...]
    if kind == "linear" and len(shape) == 2:
        cls, sizes = nn.Linear, (shape[1], shape[0])
    elif kind in ("conv1d", "conv2d", "conv3d"):
        rank, groups = len(shape) - 2, given["groups"]
        cls, sizes = _CONVOLUTIONS[rank], (shape[1] * groups, shape[0], shape[2:])
        for name in ("stride", "padding", "dilation"):
            value = given[name]
            flag[name] = value if isinstance(value, str) else tuple(_full(value, rank))
        flag["groups"] = groups
    elif kind == "embedding" and len(shape) == 2:
        padding = given["padding_idx"]
        cls, sizes = nn.Embedding, shape
        flag = {"padding_idx": None if padding == -1 else padding}
    elif kind == "layer_norm":
        if tuple(given["normalized_shape"]) != shape:
            return None
        cls, sizes = nn.LayerNorm, (shape,)
        flag["eps"] = given["eps"]
    elif kind == "group_norm" and bias is not None:
        cls, sizes, flag = nn.GroupNorm, (given["num_groups"], shape[0]), {"eps": given["eps"]}
    else:
        return None
    settings = f"{cls.__name__} {sizes} {sorted(flag.items())}"
    # its own numbers are overwritten by those of the file
    return (lambda: cls(*sizes, **flag)), settings


def _full(value: Any, rank: int) -> list[int]:
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers * rank if len(numbers) == 1 else numbers


def _step(step: Step, path: str | None) -> Step:
    """The same step; one that is a layer's call takes the layer's input alone."""
    if path is None:
        return step
    given = bound(step)
    inner = given["indices"] if "indices" in given else given["input"]
    return replace(step, call=_Call(path), args=(inner,), kwargs={})


def _states(values: list[Any]) -> list[str]:
    found: list[str] = []
    for value in values:
        if isinstance(value, State):
            found.append(value.name)
        elif isinstance(value, list):
            found += _states(value)
    return found


def _refs(values: list[Any]) -> set[str]:
    found: set[str] = set()
    for value in values:
        if isinstance(value, Ref):
            found.add(value.name)
        elif isinstance(value, list):
            found |= _refs(value)
    return found


def _last_use(steps: tuple[Step, ...]) -> tuple[tuple[str, ...], ...]:
    """Per step the values that no later step needs: they are let go of there."""
    last: dict[str, int] = {}
    for number, step in enumerate(steps):
        made = [step.outputs] if isinstance(step.outputs, str) else step.outputs
        for name in _refs([*step.args, *step.kwargs.values()]) | {n for n in made if n}:
            last[name] = number
    gone: list[list[str]] = [[] for _ in steps]
    for name, number in last.items():
        gone[number].append(name)
    return tuple(tuple(names) for names in gone)


def _owner(root: nn.Module, path: str) -> nn.Module:
    """The module of that dotted name; containers are made where there are none."""
    module = root
    for name in path.split(".") if path else ():
        if name not in module._modules:
            module.add_module(name, nn.Module())
        module = module.get_submodule(name)
    return module


def _add_module(root: nn.Module, path: str, layer: nn.Module) -> None:
    owner, _, leaf = path.rpartition(".")
    parent = _owner(root, owner)
    if leaf in parent._modules:  # a container made for a deeper name
        raise KeyError(f"{path} is a layer and holds others")
    parent.add_module(leaf, layer)
