"""Features [N, d] from keyword inputs: the wrappers around a user's module.

All of them export with a dynamic batch (and sequence): no Python number is taken from a shape.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edge_pslora.models.types import Backbone


class PositionalBackbone(Backbone):
    """Any module that takes its inputs by position: factories and built-in networks.

    names: the keyword inputs, in the order in which the module takes them.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Features [N, d]; outputs with positions are averaged over them."""
        return pool_positions(self.model(*(inputs[name] for name in self.names)))


class TransformersBackbone(Backbone):
    """A transformers module. pooling: which of its outputs become features.

    "logits": of a classification model whose classifier was replaced by Identity.
    "mask_mean": last_hidden_state [N, T, d] averaged over the tokens that the mask keeps.
    "frames_mean": likewise for sound, whose mask counts samples and not frames.
    "pooler": pooler_output. "mean": last_hidden_state averaged over all positions.
    "language": a language model's logits of the next token [N, T, V], as they are.
    """

    def __init__(self, model: nn.Module, pooling: str) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Features [N, d]; of a language model [N, T, V]."""
        if self.pooling == "language":
            # without a cache: it would be made, returned and thrown away at every step
            logits: torch.Tensor = self.model(**inputs, use_cache=False, return_dict=True).logits
            return logits
        output: Any = self.model(**inputs, return_dict=True)
        if self.pooling == "logits":
            return pool_positions(output.logits)
        if self.pooling == "pooler":
            return pool_positions(output.pooler_output)
        if self.pooling == "frames_mean":
            states = output.last_hidden_state
            model: Any = self.model
            mask = model._get_feature_vector_attention_mask(
                states.shape[1], inputs["attention_mask"]
            )
            return masked_mean(states, mask)
        if self.pooling == "mask_mean":
            return masked_mean(output.last_hidden_state, inputs["attention_mask"])
        return pool_positions(output.last_hidden_state)


def masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean [N, d] of states [N, T, d] where the mask [N, T] is not zero."""
    weights = mask.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def pool_positions(features: torch.Tensor) -> torch.Tensor:
    """[N, d] as it is; [N, T, d] averaged over T; [N, d, H, W] averaged over H and W."""
    if features.dim() == 3:
        return features.mean(1)
    if features.dim() == 4:
        return features.mean((2, 3))
    return features
