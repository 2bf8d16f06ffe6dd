"""Causal language modelling: every token predicts the next. The model's own output layer is the head.

Score: share of a text's tokens that the model would have said; headline figure: that share over all
texts, with the perplexity beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from edge_pslora.core.scores import IDS, MASK, next_tokens
from edge_pslora.tasks.types import Array, Inputs, Measures, Task, half_the_gap, mean

IGNORED = -100  # what torch's cross-entropy leaves out


def _loss(
    logits: torch.Tensor, encoded: torch.Tensor, inputs: Inputs, scale: float
) -> torch.Tensor:
    """Mean cross-entropy of logits [N, T, V] at positions 0..T-2 against the tokens 1..T-1."""
    wanted = inputs[IDS].masked_fill(inputs[MASK] == 0, IGNORED)[:, 1:]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)


def _measure(
    logits: Array, targets: Array, inputs: Mapping[str, Array], labels: Sequence[str], scale: float
) -> Measures:
    """score [N]; tokens [N]: how many were predicted; surprise [N]: -log of their probability, summed
    (nats)."""
    wanted, counted = inputs[IDS][:, 1:], inputs[MASK][:, 1:] != 0
    outputs = logits[:, :-1].astype(np.float64)
    highest = outputs.max(axis=2)
    total = highest + np.log(np.exp(outputs - highest[:, :, None]).sum(axis=2))
    chosen = np.take_along_axis(outputs, wanted[:, :, None], axis=2)[:, :, 0]
    score, tokens = next_tokens(logits, inputs)
    return {
        "score": score,
        "tokens": tokens.astype(np.float64),
        "surprise": ((total - chosen) * counted).sum(axis=1),
    }


def _figures(measures: Measures, targets: Array, scale: float) -> dict[str, float]:
    tokens = max(float(measures["tokens"].sum()), 1.0)
    surprise = float(measures["surprise"].sum()) / tokens
    return {"accuracy": mean(measures["score"]), "perplexity": float(np.exp(min(surprise, 700.0)))}


LANGUAGE = Task(
    metric="token_accuracy",
    labels_in=lambda targets: set(),
    encode=lambda targets, labels: torch.zeros(len(targets)),
    columns=lambda encoded, count: encoded.new_zeros(len(encoded), count),
    loss=_loss,
    terms=lambda lengths: np.maximum(lengths - 1, 0),
    measure=_measure,
    figures=_figures,
    per_label=lambda measures, targets, labels: {},
    constant=lambda train, held, scale: None,
    predict=lambda logits: np.asarray(logits.argmax(axis=2)),
    margin=lambda logits, chosen: half_the_gap(logits, chosen, 2),
    has_head=False,
)
