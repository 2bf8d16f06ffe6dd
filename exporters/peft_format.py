"""How PEFT lays an adapter out: paths, one rank per packed attention, patterns. No input or output.

The first pattern that matches the end of a path sets its rank and alpha. A packed attention is one
module to PEFT and carries two pairs: its own for in_proj and one for out_proj under .base_layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edge_pslora.exporters.lora_factors import LayerKind, LoraFactors

OUT_PROJ = ".out_proj"
STORED_OUT_PROJ = ".base_layer.out_proj"


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says for all layers; layers with another rank or alpha get patterns.

    base_model: name of the model that the adapter belongs to, None if it has no name.
    """

    rank: int
    alpha: float
    use_rslora: bool = False
    base_model: str | None = None

    @property
    def scaling(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def with_rank(self, rank: int) -> AdapterConfig:
        """The same scaling at another rank."""
        alpha = self.scaling * (math.sqrt(rank) if self.use_rslora else rank)
        return self if rank == self.rank else replace(self, rank=rank, alpha=alpha)


def stored_layers(
    layers: Mapping[str, LoraFactors], config: AdapterConfig
) -> tuple[dict[str, LoraFactors], AdapterConfig]:
    """The layers under the paths PEFT stores them, both pairs of every packed attention.

    No pattern can name the stored out_proj (PEFT would look for a layer of that name), so that
    attentions take the common rank and scaling: the returned config, whose rank is the largest of
    theirs if there are any.
    """
    attention = {path: f for path, f in layers.items() if f.kind.startswith("mha")}
    stored = {path: f for path, f in layers.items() if path not in attention}
    if attention:
        config = config.with_rank(max(f.rank for f in attention.values()))
    for path, layer in attention.items():
        owner = path.removesuffix(OUT_PROJ) if layer.kind == "mha_out_proj" else path
        size = int(layer.A.shape[1])
        pair = (
            layers.get(owner, _zero("mha_in_proj", size, 3 * size)),
            layers.get(owner + OUT_PROJ, _zero("mha_out_proj", size, size)),
        )
        stored[owner], stored[owner + STORED_OUT_PROJ] = (_brought_to(f, config) for f in pair)
    return stored, config


def _zero(kind: LayerKind, size: int, out: int) -> LoraFactors:
    return LoraFactors(kind, np.zeros((1, size)), np.zeros((out, 1)), 1.0)


def _brought_to(layer: LoraFactors, config: AdapterConfig) -> LoraFactors:
    """The same update with more rows (of zeros) and the common scaling."""
    missing = config.rank - layer.rank
    A = np.pad(layer.A, ((0, missing), (0, 0)))
    B = np.pad(layer.B * (layer.scaling / config.scaling), ((0, 0), (0, missing)))
    return LoraFactors(layer.kind, A, B, config.scaling)


def config_json(stored: Mapping[str, LoraFactors], config: AdapterConfig) -> dict[str, Any]:
    """adapter_config.json for the result of stored_layers: only keys that PEFT 0.6 knew already."""
    targets = {path: f for path, f in stored.items() if not path.endswith(STORED_OUT_PROJ)}
    # PEFT takes the first pattern that matches the end of a path: longer paths go first, and as
    # soon as one layer needs a pattern all get one ("fc" would also match "block.fc")
    order = sorted(targets, key=lambda path: (-len(path), path))
    ranks = {path: targets[path].rank for path in order}
    alphas = {
        path: targets[path].scaling * (math.sqrt(rank) if config.use_rslora else rank)
        for path, rank in ranks.items()
    }
    same_rank = all(rank == config.rank for rank in ranks.values())
    same_alpha = all(math.isclose(alpha, config.alpha) for alpha in alphas.values())
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": config.base_model,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": _whole(config.alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": _fan_in_fan_out(targets),
        "use_rslora": config.use_rslora,
        "target_modules": sorted(targets),
        "rank_pattern": {} if same_rank else ranks,
        "alpha_pattern": {} if same_alpha else {p: _whole(a) for p, a in alphas.items()},
    }


def _fan_in_fan_out(targets: Mapping[str, LoraFactors]) -> bool:
    """What the one flag for all layers says: true where one of them is transformers' Conv1D.

    PEFT looks at each layer, corrects the flag for the next ones and warns (tried with 0.21): it
    computes the right thing in any case, and says nothing where no Linear is among them.
    """
    kinds = {layer.kind for layer in targets.values()}
    # under a true flag PEFT refuses to adapt a MultiheadAttention
    return "transposed_linear" in kinds and not any(kind.startswith("mha") for kind in kinds)


def _whole(value: float) -> int | float:
    return round(value) if math.isclose(value, round(value)) else value
