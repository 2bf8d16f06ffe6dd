"""LwF: answer the new samples on the old labels as the old model did (arXiv 1606.09282, Eq. 2 and
3)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from edge_pslora.compare.rule import Round, Step, summed
from edge_pslora.training.features import extract_features


def distillation(logits: torch.Tensor, old: torch.Tensor, temperature: float) -> torch.Tensor:
    """-sum_i y'_i log y^'_i, mean over samples; y' = softmax(old / T), y^' = softmax(logits / T)."""
    wanted = F.softmax(old / temperature, dim=1)
    return -(wanted * F.log_softmax(logits / temperature, dim=1)).sum(1).mean()


@dataclass
class LwF:
    """strength: lambda_o, 1 as published; temperature: T, 2 as published. Keeps nothing: what the old
    model says of the session's samples is noted before its first step.

    The logits are those that training sees: an analytic head's are the cross-fitted ones on old
    features.
    """

    strength: float = 1.0
    temperature: float = 2.0
    kept_bytes: int = 0
    old: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    def begin(self, round: Round) -> None:
        if not round.known:
            return
        batch = round.config.train.batch_size
        with torch.no_grad():
            features = extract_features(round.model.backbone, round.data.inputs, batch)
            logits = round.logits(features, torch.arange(len(features)))
        self.old = logits[:, : round.known].clone()

    def loss(self, round: Round, step: Step) -> torch.Tensor | None:
        if round.known < 2:  # one label has all the mass, whatever the logits
            return None
        now = step.logits[:, : round.known]
        return self.strength * distillation(now, self.old[step.samples], self.temperature)

    def after_step(self, round: Round) -> None:
        return

    def end(self, round: Round) -> dict[str, torch.Tensor]:
        self.old = torch.zeros(0, 0)
        return summed(round)
