"""The deployed network: features, scaled to norm 1 where the head asks for it, and one Linear; or a
model that yields its outputs by itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edge_pslora.models.types import Backbone
from edge_pslora.tasks import TASKS
from edge_pslora.training.head import Head


class Classifier(nn.Module):
    """logits [N, C] (regression: [N, 1]; language: [N, T, V]) from a model's keyword inputs.

    normalize: the head reads features of norm 1 (`Head.normalize`).
    """

    def __init__(self, backbone: Backbone, head: nn.Module, normalize: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.normalize = normalize

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.backbone(**inputs)
        logits: torch.Tensor = self.head(F.normalize(features) if self.normalize else features)
        return logits


def with_head(backbone: Backbone, head: Head) -> Classifier:
    """The backbone under a frozen copy of the head, or alone where the kind of task needs none."""
    if not TASKS[head.task_type].has_head:
        return Classifier(backbone, nn.Identity())
    return Classifier(backbone, linear_head(head.weight, head.bias), head.normalize)


def linear_head(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    """A frozen Linear with weight [C, d] and bias [C], copied."""
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head.requires_grad_(False)
