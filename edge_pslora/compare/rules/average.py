"""Plain averaging of updates: M_t is the mean of D_1 to D_t. A strong baseline, never to be left
out."""

from __future__ import annotations

import torch

from edge_pslora.compare.rule import PlainRule, Round, updates
from edge_pslora.training.merging import merge_all


def average_rule() -> PlainRule:
    """D_t is trained on top of M_{t-1}, and counts one t-th in M_t."""

    def end(round: Round) -> dict[str, torch.Tensor]:
        return merge_all("average", round.past, updates(round), round.session)

    return PlainRule(end=end)
