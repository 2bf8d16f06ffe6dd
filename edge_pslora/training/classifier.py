"""The deployed network: features and one Linear."""

from __future__ import annotations

import torch
from torch import nn

from edge_pslora.models.types import Backbone


class Classifier(nn.Module):
    """logits [N, C] (regression: [N, 1]) from a model's keyword inputs."""

    def __init__(self, backbone: Backbone, head: nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.backbone(**inputs))
        return logits


def linear_head(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    """A frozen Linear with weight [C, d] and bias [C], copied."""
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head.requires_grad_(False)
