"""Adapters from elsewhere as past sessions: each PEFT folder of the first `adapt` counts as one.

They are joined and remembered as if this workspace had trained them: merged by the session's rule,
oldest first, folded into the history, counted. The model then starts from W0 + M_0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edge_pslora.config import AdaptConfig
from edge_pslora.core.history import fold, pool_bytes
from edge_pslora.core.lora import relative_norm
from edge_pslora.core.replay import low_rank_update
from edge_pslora.errors import AdapterError, ModelError
from edge_pslora.exporters.lora_factors import LoraFactors
from edge_pslora.exporters.peft_adapter import read_peft_adapter
from edge_pslora.models.types import LoadedModel
from edge_pslora.pipeline.memory_files import open_base
from edge_pslora.training.memory import BaseWeights, Memory
from edge_pslora.training.merging import merge_all, running_sums, target_weights
from edge_pslora.training.targets import Target, as_matrix, find_targets
from edge_pslora.workspace.adapter_folder import CONFIG, WEIGHTS, read_adapter
from edge_pslora.workspace.adapter_names import rename_among

# the same factors [r, in], [out, r]: only the model knows which of them a layer is
_PLAIN = {"linear", "transposed_linear", "mha_out_proj"}


@dataclass(frozen=True)
class Factors:
    """The update s B A of one target: A [r, in], B [out, r], both float32."""

    A: torch.Tensor
    B: torch.Tensor
    scaling: float

    def delta(self) -> torch.Tensor:
        """D [out, in]."""
        return torch.from_numpy(low_rank_update(self.B.numpy(), self.A.numpy(), self.scaling))


@dataclass(frozen=True)
class PastAdapter:
    """One adapter folder, fitted to the model. layers: target name -> its factors."""

    name: str
    digest: str
    layers: Mapping[str, Factors]

    def facts(self) -> dict[str, Any]:
        """For the manifest; JSON values."""
        ranks = sorted({len(factors.A) for factors in self.layers.values()})
        return {
            "name": self.name,
            "sha256": self.digest,
            "layers": len(self.layers),
            "ranks": ranks,
        }

    def note(self, session: int) -> str:
        return f"Adapter {self.name} counts as session {session} ({len(self.layers)} layers)."


def read_past(folders: Sequence[Path], model: LoadedModel) -> tuple[PastAdapter, ...]:
    """The adapters, oldest first, with the names that their layers have in the model.

    Raises:
        AdapterError: not plain LoRA, damaged, or not made for this model.
    """
    past: list[PastAdapter] = []
    for folder in folders:
        name = _free_name(folder.resolve().name, [p.name for p in past])
        past.append(PastAdapter(name, *_read(folder, model)))
    return tuple(past)


def start_after(
    past: Sequence[PastAdapter],
    memory: Memory,
    model: LoadedModel,
    base: Path,
    targets: tuple[Target, ...],
    config: AdaptConfig,
) -> Memory:
    """The memory after those sessions; the model gets W0 + M_0.

    memory: an empty one for `targets`, which hold every layer of the adapters.
    """
    size = pool_bytes({t.name: t.shape for t in targets}, config.budget.history_bytes)
    merged = {t.name: torch.zeros(t.shape) for t in targets}
    running, history = memory.running, memory.history
    for session, adapter in enumerate(past, start=memory.sessions + 1):
        deltas = {t.name: torch.zeros(t.shape) for t in targets}
        deltas |= {name: factors.delta() for name, factors in adapter.layers.items()}
        running = running_sums(config.merge, running or merged, deltas)
        merged = merge_all(config.merge, merged, running or deltas, session)
        updates = {n: (f.scaling * f.B, f.A) for n, f in adapter.layers.items()}
        history = fold(history, updates, size)
    with open_base(base, model) as base_weights:
        if not config.gate.force:
            _require_small(past, targets, base_weights, config.gate.max_update)
        target_weights(model.backbone.model, targets, base_weights).set_to(merged)
    return replace(memory, sessions=memory.sessions + len(past), history=history, running=running)


def _read(folder: Path, model: LoadedModel) -> tuple[str, dict[str, Factors]]:
    whole = read_adapter(folder).others
    if whole:
        raise AdapterError(
            str(folder),
            expected="LoRA factors only",
            found=f"{', '.join(sorted(whole)[:3])}, saved whole (modules_to_save or biases)",
            remedy="merge it first: PeftModel's merge_and_unload(), save_pretrained(FOLDER), then "
            "--model FOLDER without --adapter",
        )
    stored = read_peft_adapter(folder).layers
    module = model.backbone.model
    names = {_weight_name(path, layer): path for path, layer in stored.items()}
    known = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    rename = rename_among(list(names), known, str(folder / WEIGHTS), "the model")
    layers: dict[str, Factors] = {}
    for weight_name, path in names.items():
        target = _target(module, rename(weight_name), f"{folder}, {path}")
        layers[target.name] = _factors(stored[path], target, module, f"{folder}, {path}")
    if len(layers) != len(stored):
        raise AdapterError(
            str(folder),
            expected="each of its layers once",
            found=f"{len(stored)} layers for {len(layers)} of the model",
            remedy="use the base model that the adapter was trained on",
        )
    return _digest(folder), layers


def _require_small(
    past: Sequence[PastAdapter], targets: tuple[Target, ...], base: BaseWeights, most: float
) -> None:
    """Raises AdapterError: an update that is larger than the weights that it is for."""
    for target in targets:
        weight = as_matrix(base(target.weight_name), target)
        for adapter in past:
            if target.name not in adapter.layers:
                continue
            size = relative_norm(adapter.layers[target.name].delta(), weight)
            if not size <= most:
                raise AdapterError(
                    f"{adapter.name}, {target.name}",
                    expected=f"an update of at most {most:g} times the base's weights",
                    found=f"{size:.3g} times",
                    remedy="check its lora_alpha and its base model, or give --force",
                )


def _weight_name(path: str, layer: LoraFactors) -> str:
    return f"{path}.in_proj_weight" if layer.kind == "mha_in_proj" else f"{path}.weight"


def _target(module: nn.Module, weight_name: str, where: str) -> Target:
    owner = weight_name.rpartition(".")[0]
    try:
        (target,) = find_targets(module, (owner,))
    except ModelError as problem:  # an unsupported or tied layer: the adapter asked for it
        raise AdapterError(
            where,
            expected=problem.expected,
            found=problem.found,
            remedy="leave this layer out of the adapter's target_modules and train it again",
        ) from problem
    return target


def _factors(layer: LoraFactors, target: Target, module: nn.Module, where: str) -> Factors:
    A = torch.from_numpy(layer.A.reshape(layer.rank, -1).copy())
    B = torch.from_numpy(layer.B.reshape(len(layer.B), -1).copy())
    weight = module.get_parameter(target.weight_name)
    alike = layer.kind == target.kind or {layer.kind, target.kind} <= _PLAIN
    fits = alike and (B.shape[0], A.shape[1]) == target.shape
    if not fits or (layer.A.ndim > 2 and layer.A.shape[1:] != tuple(weight.shape[1:])):
        raise AdapterError(
            where,
            expected=f"factors of a {target.kind} with weight {list(weight.shape)}",
            found=f"A {list(layer.A.shape)}, B {list(layer.B.shape)} of a {layer.kind}",
            remedy="use the base model that the adapter was trained on",
        )
    return Factors(A, B, layer.scaling)


def _digest(folder: Path) -> str:
    """Of the two files that say what the adapter computes."""
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _free_name(name: str, taken: Sequence[str]) -> str:
    return name if name not in taken else f"{name} ({len(taken) + 1})"
