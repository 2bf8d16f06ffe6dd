"""A causal language model of transformers as an ONNX file that takes and gives its keys and values."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from edge_pslora.errors import ModelError
from edge_pslora.exporters.kv_cache import (
    CACHE_KEY,
    IDS,
    LOGITS,
    MASK,
    POSITIONS,
    TOTAL,
    KvCache,
    axes_of,
)
from edge_pslora.exporters.onnx_export import OnnxFiles, check_arguments, layout_json
from edge_pslora.exporters.onnx_file import LAYOUT_KEY
from edge_pslora.exporters.onnx_graph import name_initializers, tidy
from edge_pslora.exporters.onnx_trace import PREFIX, trace_graph
from edge_pslora.exporters.onnx_write import write_model
from edge_pslora.models.failures import FOREIGN_ERRORS, first_line
from edge_pslora.models.hf_parts import quiet, require_transformers

# The mask of `sdpa` is True and False, and a row of padding that sees nothing becomes 0 / 0 in a runtime
# that knows no such case; `eager` adds the lowest float instead, in fewer operators.
_ATTENTION = "eager"
# Sizes of the traced example: different ones, or torch.export takes two axes for one.
_TEXTS, _NEW, _EARLIER = 2, 3, 5
_TRACED_TOTAL = "total_sequence_length"  # torch takes identifiers only


class _WithCache(nn.Module):
    """The model inside the classifier, with flat tensors in place of a cache object.

    path: the model's place inside the classifier, which is kept so that weights have their usual names.
    """

    def __init__(self, classifier: nn.Module, path: str, names: tuple[str, ...]) -> None:
        super().__init__()
        self.classifier = classifier
        self.path = path
        self.names = names
        self.cache_type: Any = require_transformers(path).DynamicCache

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Inputs in the order of `names`, then key and value of each layer; logits, then the same."""
        named = dict(zip(self.names, inputs, strict=False))
        past = inputs[len(named) :]
        output: Any = self.classifier.get_submodule(self.path)(
            **named,
            past_key_values=self.cache_type(list(zip(past[::2], past[1::2], strict=True))),
            use_cache=True,
            return_dict=True,
        )
        present = (part for layer in output.past_key_values.layers for part in _parts(layer))
        return (output.logits, *present)


def _parts(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.keys, layer.values


@torch.no_grad()
def find_cache(model: nn.Module, example: Mapping[str, torch.Tensor]) -> KvCache:
    """The shape of the keys and values of a causal language model, as it makes them itself.

    Raises:
        ModelError: a cache that is not keys and values of all earlier tokens: of a window of them, of a
            recurrent state, of two models, of layers that differ or share.
    """
    config: Any = model.config
    where = f"--kv-cache, model type {getattr(config, 'model_type', type(model).__name__)}"
    transformers = require_transformers(where)
    plain = transformers.cache_utils.DynamicLayer
    try:
        output = model(**example, use_cache=True, return_dict=True)
    except FOREIGN_ERRORS as error:
        raise ModelError(
            where,
            expected="a model that runs with use_cache",
            found=first_line(error),
            remedy="export it without --kv-cache",
        ) from error
    cache = getattr(output, "past_key_values", None)
    layers: list[Any] = list(getattr(cache, "layers", ()))
    kinds = sorted({type(layer).__name__ for layer in layers})
    if type(cache) is not transformers.DynamicCache or {type(layer) for layer in layers} != {plain}:
        found = f"{type(cache).__name__} of {', '.join(kinds) or 'no layers'}"
        raise _unlike(where, "no cache" if cache is None else found)
    shapes = {tuple(part.shape) for layer in layers for part in _parts(layer)}
    if len(shapes) != 1:
        raise _unlike(where, f"keys and values of the shapes {sorted(shapes)}")
    batch, heads, length, head_dim = shapes.pop()
    if (batch, length) != tuple(example[IDS].shape):
        raise _unlike(where, f"{length} keys for {example[IDS].shape[1]} tokens")
    return KvCache(len(layers), heads, head_dim)


def _unlike(where: str, found: str) -> ModelError:
    return ModelError(
        where,
        expected="a key and a value of one shape for every token in every layer",
        found=found,
        remedy="export it without --kv-cache",
    )


def export_with_cache(
    classifier: nn.Module,
    path_of_model: str,
    cache: KvCache,
    path: Path,
    *,
    metadata: Mapping[str, str],
    opset: int = 18,
    external_data: bool | None = None,
) -> OnnxFiles:
    """Write `path` (and `path`_data) durably: inputs and outputs as in kv_cache, weights under their names.

    Args:
        classifier: in eval mode; its state dict names the weights, as in `export_onnx`.
        path_of_model: name of the transformers model inside it.
        cache: see find_cache.
        metadata, opset, external_data: as in `export_onnx`; `pslora.kv_cache` is added.

    Raises:
        ModelError: training mode, a model that cannot be exported or fixes an axis.
        UsageError: an opset or metadata key that is not possible.
    """
    check_arguments(classifier, metadata, opset)
    model = classifier.get_submodule(path_of_model)
    example = _example(model, cache)
    names = tuple(example)
    flat = tuple(name for name in names if name not in cache.past_names)
    wrapper = _WithCache(classifier, path_of_model, flat).eval()
    shapes = tuple(
        {
            position: _TRACED_TOTAL if axis == TOTAL else axis
            for position, axis in axes_of(name).items()
        }
        for name in names
    )
    outputs = (LOGITS, *cache.present_names)
    with _attention(model):
        program = trace_graph(wrapper, tuple(example.values()), shapes, names, opset, outputs)
    state = {name: tuple(tensor.shape) for name, tensor in classifier.state_dict().items()}
    tidy(program, frozenset(PREFIX + name for name in state))
    _name_axes(program.graph)
    layout = name_initializers(program.graph, PREFIX, state)
    more = {CACHE_KEY: cache.to_json(), LAYOUT_KEY: layout_json(layout)}
    program.metadata_props.update(sorted({**metadata, **more}.items()))
    data = write_model(program, path, external_data)
    return OnnxFiles(path, data, layout)


def _example(model: nn.Module, cache: KvCache) -> dict[str, torch.Tensor]:
    """Inputs to trace with, in the file's order; only their shapes matter."""
    positions = torch.arange(_EARLIER, _EARLIER + _NEW).expand(_TEXTS, _NEW).clone()
    example = {
        IDS: torch.zeros(_TEXTS, _NEW, dtype=torch.int64),
        MASK: torch.ones(_TEXTS, _EARLIER + _NEW, dtype=torch.int64),
    }
    if POSITIONS in inspect.signature(model.forward).parameters:
        example[POSITIONS] = positions
    for name in cache.past_names:
        example[name] = torch.zeros(_TEXTS, cache.heads, _EARLIER, cache.head_dim)
    return example


@contextmanager
def _attention(model: Any) -> Iterator[None]:
    """_ATTENTION inside, the model's own afterwards; a model that knows one kind only keeps it."""
    own = model.config._attn_implementation
    with quiet(require_transformers("--kv-cache")):
        model.set_attn_implementation(_ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


def _name_axes(graph: ir.Graph) -> None:
    """Every free axis gets its name, and has to be free: see kv_cache."""
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([_spelled(size) for size in value.shape])
    for value in (*graph.inputs, *graph.outputs):
        name, shape = value.name or "", list(value.shape or ())
        for position, axis in axes_of(name).items():
            if isinstance(shape[position], int):
                raise ModelError(
                    f"ONNX export, {name}",
                    expected=f"any size along the axis {axis}",
                    found=f"the model works for {shape[position]} only",
                    remedy="export it without --kv-cache",
                )
            shape[position] = ir.SymbolicDim(axis)
        value.shape = ir.Shape(shape)


def _spelled(size: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
    text = None if isinstance(size, int) else size.value
    if text is None or _TRACED_TOTAL not in text:
        return size
    return ir.SymbolicDim(
        TOTAL if text == _TRACED_TOTAL else text.replace(_TRACED_TOTAL, f"({TOTAL})")
    )
