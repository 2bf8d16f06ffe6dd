"""model.onnx that takes adapters, and what each generation puts into it. No torch.

Names and shapes of factors are those of Olive's convert-adapters: PEFT's names, the matrices transposed,
the scaling inside B: A [in, r], B [r, out]. A convolution's kernel is flattened into `in`; an embedding
has A [num, r], B [r, dim]. What changes as a whole (the head, trained norms) keeps the name and shape
that it has in model.onnx.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edge_pslora.exporters.adapter_graph import FactorInputs, free_last_axis, open_to_adapters
from edge_pslora.exporters.generation_update import GenerationUpdate
from edge_pslora.exporters.lora_factors import Array, LoraFactors, transposes
from edge_pslora.exporters.onnx_write import write_model

HEAD = ("head.weight", "head.bias")
CLASSES = "classes"
PARAMETERS_KEY = "pslora.adapter"
# of metadata_props; the layout is what a patch goes by, and there is nothing to patch in this file
_OF_ONE_GENERATION = ("pslora.layout", "pslora.generation", "pslora.labels", "pslora.merge")


@dataclass(frozen=True)
class AdapterPlan:
    """What model.onnx takes from outside.

    weights: name in the base's file -> initializer of model.onnx. layers: module path -> name in the
    base's file, of every layer that one of the adapters has; factors: of one of those adapters, for their
    kinds. whole: names in the base's file of tensors that an adapter holds as they are. head: the base's
    own weight [C, d] and bias [C], C = 0 where it has none; None for a model without a head of ours.
    """

    weights: Mapping[str, str]
    layers: Mapping[str, str]
    whole: tuple[str, ...]
    factors: Mapping[str, LoraFactors] = field(repr=False)
    head: tuple[Array, Array] | None = None


def plan_adapters(
    updates: Sequence[GenerationUpdate],
    weights: Mapping[str, str],
    head: tuple[Array, Array] | None,
) -> AdapterPlan:
    """One file for all these generations; weights: as AdapterPlan."""
    layers: dict[str, str] = {}
    factors: dict[str, LoraFactors] = {}
    for update in updates:
        layers |= update.weights
        factors |= update.layers
    whole = {name for update in updates for name in update.left_out if name in weights}
    # adapted by one generation and changed as a whole by another: the factors hold it
    return AdapterPlan(
        weights,
        dict(sorted(layers.items())),
        tuple(sorted(whole - set(layers.values()))),
        factors,
        head,
    )


def input_names(path: str, embedding: bool) -> tuple[str, str]:
    """Of A and B, as Olive's convert-adapters calls them: 'base_model.model.model' becomes 'model'."""
    ends = (
        ("lora_embedding_A", "lora_embedding_B")
        if embedding
        else ("lora_A.weight", "lora_B.weight")
    )
    first, second = (
        f"base_model.model.{path}.{end}".replace("base_model.model.model", "model") for end in ends
    )
    return first, second


def adapter_parameters(
    plan: AdapterPlan,
    update: GenerationUpdate,
    whole: Mapping[str, Array],
    head: tuple[Array, Array] | None,
) -> dict[str, Array]:
    """Input name -> array of one generation; whole: by name in the base's file; head: as the plan's."""
    found: dict[str, Array] = {}
    for path, layer in update.layers.items():
        first, second = input_names(path, layer.kind == "embedding")
        found[first] = layer.A.reshape(layer.rank, -1).T
        found[second] = layer.B.reshape(len(layer.B), -1).T * np.float32(layer.scaling)
    found |= {plan.weights[name]: whole[name] for name in plan.whole}
    if head is not None:
        found |= dict(zip(HEAD, head, strict=True))
    return found


def write_adapter_model(
    published: Path,
    out: Path,
    plan: AdapterPlan,
    base: Mapping[str, Array],
    base_labels: Sequence[str],
) -> Path | None:
    """Write `out` from a published model.onnx; equal plans and bases give equal bytes.

    base: name in the base's file -> array, of every adapted layer and of `plan.whole`.
    base_labels: of the plan's head.

    Returns:
        The path of the external data, or None.

    Raises:
        ModelError: the published file has not the weights that the plan names.
    """
    model = ir.load(published)
    values = {plan.weights[name]: base[name] for name in (*plan.layers.values(), *plan.whole)}
    free: dict[str, tuple[str | None, ...]] = {
        plan.weights[name]: (None,) * base[name].ndim for name in plan.whole
    }
    if plan.head is not None:
        values |= dict(zip(HEAD, plan.head, strict=True))
        free |= {HEAD[0]: (CLASSES, None), HEAD[1]: (CLASSES,)}
    inputs = {}
    for path, name in plan.layers.items():
        kind = plan.factors[path].kind
        inputs[plan.weights[name]] = FactorInputs(
            *input_names(path, kind == "embedding"), transposes(kind)
        )
    open_to_adapters(model, values, inputs, free)
    if plan.head is not None:
        free_last_axis(model, CLASSES)
    for key in _OF_ONE_GENERATION:
        model.metadata_props.pop(key, None)
    model.metadata_props["pslora.labels"] = json.dumps(list(base_labels), ensure_ascii=False)
    model.metadata_props[PARAMETERS_KEY] = json.dumps(
        {"layers": sorted(plan.layers), "whole": sorted(free)}, separators=(",", ":")
    )
    model.metadata_props.update(dict(sorted(model.metadata_props.items())))
    return write_model(model, out, None)
