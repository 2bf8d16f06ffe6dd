"""A graph that torch.export found once is taken again for a module that is built the same way.

Tracing is most of a first session, and tests of adapters, budgets or damaged data begin dozens of
workspaces with one small network. What is taken over is what torch.export gave, with this module's
weights in the place of the first one's; all that follows is done as always, and the session still
proves the file against torch.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from edge_pslora.exporters import onnx_export
from edge_pslora.exporters.onnx_failure import Failure
from edge_pslora.exporters.onnx_trace import PREFIX, Request

Answer = ir.Model | Failure
_SIMPLE = (type(None), bool, int, float, complex, str, bytes, type, Enum, torch.dtype, torch.device)
_OWN = {
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
    "_is_full_backward_hook",
}
_kept: dict[Hashable, Any] = {}


class UnknownError(Exception):
    """What a module holds may decide what it computes in a way that cannot be compared."""


@contextmanager
def graphs_kept() -> Iterator[None]:
    """Within it, and by all within it in this process."""
    real = onnx_export.by_export
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "by_export", lambda request: _exported(request, real))
        yield


def _exported(request: Request, real: Any) -> Answer:
    try:
        key = built_as(request)
    except UnknownError:
        return real(request)
    if key in _kept:
        return _with_weights(ir.from_proto(_kept[key]), request.classifier)
    found: Answer = real(request)
    if isinstance(found, ir.Model):
        _kept[key] = ir.to_proto(found)
    return found


def _with_weights(model: ir.Model, module: nn.Module) -> ir.Model:
    for name, tensor in module.state_dict().items():
        value = model.graph.initializers.get(PREFIX + name)
        if value is not None:
            value.const_value = ir.tensor(tensor.detach().numpy(), name=value.name)
    return model


def built_as(request: Request) -> Hashable:
    """All that a graph may depend on but the values of weights: equal only where the graph is.

    Raises:
        UnknownError: a module holds something of another kind than numbers, names and functions.
    """
    example = [(n, t.dtype, *t.shape, *request.dynamic_axes[n]) for n, t in request.example.items()]
    parts: list[Hashable] = [request.opset, *example]
    stored = request.classifier.state_dict(keep_vars=True)
    first: dict[int, str] = {}  # tied weights are one
    for name, tensor in stored.items():
        owner = first.setdefault(id(tensor), name)
        parts.append((name, owner, tensor.dtype, *tensor.shape))
    for name, buffer in request.classifier.named_buffers():
        if name not in stored:
            parts.append((name, buffer.dtype, *buffer.shape, buffer.numpy().tobytes()))
    for name, module in request.classifier.named_modules(remove_duplicate=False):
        parts.append((name, type(module), *_held(module)))
    return tuple(parts)


def _held(module: nn.Module) -> Iterator[Hashable]:
    yield tuple(name for name, value in module._parameters.items() if value is None)
    for name, value in sorted(vars(module).items()):
        if name not in _OWN:
            yield name, _plain(value)


def _plain(value: Any) -> Hashable:
    if isinstance(value, _SIMPLE):
        return type(value), value  # 1, 1.0 and True are equal, and another graph
    if isinstance(value, FunctionType | BuiltinFunctionType):
        if getattr(value, "__closure__", None) is None:
            return value
    elif isinstance(value, Mapping):
        return type(value), *((_plain(k), _plain(v)) for k, v in value.items())
    elif isinstance(value, tuple | list):
        return type(value), *map(_plain, value)
    elif isinstance(value, set | frozenset):
        return type(value), frozenset(map(_plain, value))
    elif isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    elif hasattr(value, "to_json_string"):  # a configuration of transformers
        return type(value), value.to_json_string(), getattr(value, "_attn_implementation", None)
    raise UnknownError(type(value))
