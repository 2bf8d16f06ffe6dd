"""Adapters as PEFT folders: adapter_config.json, adapter_model.safetensors, a sidecar. No torch.

PEFT's conventions (its LoRA documentation, tried with 0.21): keys start with base_model.model.; a
packed attention carries two pairs, its own for in_proj and one for out_proj under .base_layer; the
first pattern that matches the end of a path sets its rank and alpha.

The flag fan_in_fan_out stands for all layers; which ones are transformers' Conv1D, whose weights are
[in, out], is said by `transposed` of the sidecar: a merge of files needs it where in = out.

PEFT up to 0.21 applies an adapter of MultiheadAttention's out_proj twice (its pull request 3774), and
runs that of a convolution without its dilation and padding mode, though its merge_and_unload has
them: the files say what PEFT documents, so such an adapter is right here and wrong there until then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge_pslora.errors import AdapterError
from edge_pslora.exporters.lora_factors import Array, LayerKind, LoraFactors, check_factors
from edge_pslora.exporters.model_card import ModelCard, write_card
from edge_pslora.exporters.peft_format import (
    OUT_PROJ,
    STORED_OUT_PROJ,
    AdapterConfig,
    config_json,
    stored_layers,
)
from edge_pslora.workspace import durable, strict_json
from edge_pslora.workspace.adapter_folder import (
    CONFIG,
    PREFIX,
    SIDECAR,
    TRANSPOSED,
    WEIGHTS,
    Adapter,
    LoraModule,
    read_adapter,
)
from edge_pslora.workspace.tensors import open_tensors, write_tensors


@dataclass(frozen=True)
class PeftAdapter:
    """The content of an adapter folder. layers: by module path; sidecar: {} if there is none."""

    layers: Mapping[str, LoraFactors]
    config: AdapterConfig
    sidecar: Mapping[str, Any] = field(default_factory=dict)


def write_peft_adapter(
    folder: Path,
    layers: Mapping[str, LoraFactors],
    config: AdapterConfig,
    *,
    sidecar: Mapping[str, Any] | None = None,
    card: ModelCard | None = None,
) -> list[Path]:
    """Write a folder that PeftModel.from_pretrained loads; equal input gives equal bytes.

    Args:
        folder: exists; files of the same names are replaced.
        layers: module path inside the model -> its factors; at least one.
        config: the common values.
        sidecar: JSON values for pslora_config.json (unknown keys in adapter_config.json break
            old PEFT); `transposed` is added where a layer is a transposed_linear.
        card: goes to README.md.

    Raises:
        AdapterError: shapes that do not fit, a scaling not above zero.
        EdgePsloraError: a value is not finite, or the disk failed.
    """
    if not layers:
        raise _bad(
            str(folder), "at least one adapted layer", "none", "choose other --target layers"
        )
    for path, layer in layers.items():
        check_factors(path, layer)
    stored, config = stored_layers(layers, config)
    tensors: dict[str, Array] = {}
    for path, layer in stored.items():
        infix = "lora_embedding_{}" if layer.kind == "embedding" else "lora_{}.weight"
        for letter, factor in (("A", layer.A), ("B", layer.B)):
            tensors[f"{PREFIX}{path}.{infix.format(letter)}"] = factor.astype(np.float32)
    paths = [folder / WEIGHTS, folder / CONFIG]
    write_tensors(paths[0], tensors, {"format": "pt"}, finite=True)
    durable.write_bytes(paths[1], _config_bytes(stored, config))
    transposed = sorted(p for p, layer in layers.items() if layer.kind == "transposed_linear")
    if transposed:
        sidecar = {**(sidecar or {}), TRANSPOSED: transposed}
    if sidecar is not None:
        paths.append(folder / SIDECAR)
        durable.write_bytes(paths[-1], strict_json.canonical(dict(sidecar)))
    if card is not None:
        paths.append(write_card(folder, card))
    return paths


def read_peft_adapter(folder: Path) -> PeftAdapter:
    """Read a LoRA folder written here or by PEFT, in float32.

    Without a sidecar only the model knows which layers are transposed; the kinds then follow the
    flag fan_in_fan_out, which PEFT leaves as its last Linear or Conv1D layer wants it.

    Raises:
        AdapterError: not plain LoRA, damaged, or not finite.
    """
    checked = read_adapter(folder)
    if checked.others:
        found = ", ".join(sorted(checked.others)[:3])
        raise _bad(str(folder), "LoRA factors only", found, "save it without modules_to_save")
    kinds = _kinds(checked)
    layers = {}
    with open_tensors(checked.weights, error=AdapterError) as file:
        for module in checked.modules:
            A = file.read(module.a_key, finite=True).astype(np.float32)
            B = file.read(module.b_key, finite=True).astype(np.float32)
            path, kind = kinds[module.path]
            if kind.startswith("mha") and not (A.any() or B.any()):
                continue  # PEFT always stores both projections; a zero pair is one that has none
            layers[path] = LoraFactors(kind, A, B, module.scaling)
    raw = strict_json.read(folder / CONFIG, error=AdapterError)
    base = raw.get("base_model_name_or_path")
    config = AdapterConfig(
        int(raw["r"]), float(raw["lora_alpha"]), bool(raw.get("use_rslora")), base or None
    )
    sidecar_path = folder / SIDECAR
    sidecar = strict_json.read(sidecar_path, error=AdapterError) if sidecar_path.exists() else {}
    return PeftAdapter(layers, config, sidecar)


def _kinds(adapter: Adapter) -> dict[str, tuple[str, LayerKind]]:
    """Stored path -> (path in the model, kind)."""
    attentions = {
        module.path.removesuffix(STORED_OUT_PROJ)
        for module in adapter.modules
        if module.path.endswith(STORED_OUT_PROJ)
    }
    kinds: dict[str, tuple[str, LayerKind]] = {}
    for module in adapter.modules:
        path = module.path
        if module.embedding:
            kinds[path] = path, "embedding"
        elif path.endswith(STORED_OUT_PROJ):
            kinds[path] = path.removesuffix(STORED_OUT_PROJ) + OUT_PROJ, "mha_out_proj"
        elif path in attentions:
            kinds[path] = path, "mha_in_proj"
        else:
            kinds[path] = path, _plain_kind(adapter, module)
    return kinds


def _plain_kind(adapter: Adapter, module: LoraModule) -> LayerKind:
    dimensions = len(adapter.header.specs[module.a_key].shape)
    if dimensions == 2:
        return "transposed_linear" if module.fan_in_fan_out else "linear"
    if dimensions > 4:
        raise _bad(
            f"{adapter.weights}, {module.path}",
            "convolutions of one or two dimensions",
            f"one of {dimensions - 2}",
            "leave this layer out",
        )
    return "conv1d" if dimensions == 3 else "conv2d"


def _config_bytes(stored: Mapping[str, LoraFactors], config: AdapterConfig) -> bytes:
    # keys are not sorted: the order of patterns has a meaning to PEFT
    return (json.dumps(config_json(stored, config), indent=2) + "\n").encode("ascii")


def _bad(where: str, expected: str, found: str, remedy: str) -> AdapterError:
    return AdapterError(where, expected=expected, found=found, remedy=remedy)
