"""The label-text head: a class is the embedding of its name by the text encoder in training.

Logits are scale * cosine(features, embedding). The embeddings are made anew from the weights that
serve, so a label needs no samples and there is nothing to forget. In training all labels compete, and
both sides move: the texts, and the names of the session's labels. The names of other labels have no
sample here that could pull them: they stay where they were, so that nothing only pushes them away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from edge_pslora.data.types import Samples
from edge_pslora.models.types import Backbone, EncodedInputs, LoadedModel
from edge_pslora.training.features import extract_features

TRAINING_SCALE = 20.0  # of the cosines in the loss; what is served is calibrated afterwards
DEFAULT_TEMPLATE = "{}"


@dataclass(frozen=True)
class LabelTexts:
    """The labels' names (through the template), as the encoder takes them; in the head's order."""

    inputs: EncodedInputs

    def embeddings(self, backbone: Backbone, batch_size: int) -> torch.Tensor:
        """float32 [C, d], of norm 1, without gradient."""
        return F.normalize(extract_features(backbone, self.inputs, batch_size))


def label_texts(model: LoadedModel, labels: tuple[str, ...], template: str) -> LabelTexts:
    texts = [template.replace("{}", label) for label in labels]
    names = np.array(labels, dtype=np.str_)
    return LabelTexts(model.encoder.encode(Samples("text", "classification", texts, names)))


def named_here(targets: torch.Tensor) -> torch.Tensor:
    """int64 [K]: positions of the labels that a session has samples of; targets: int64 [N]."""
    return torch.tensor(sorted(set(targets.tolist())))


def training_logits(
    backbone: Backbone,
    texts: LabelTexts,
    among: torch.Tensor,
    features: torch.Tensor,
    served: torch.Tensor,
) -> torch.Tensor:
    """[B, C] for features [B, d]; served [C, d]: the names' embeddings at the start, of norm 1."""
    names = F.normalize(backbone(**texts.inputs.batch(among.numpy())))  # [K, d]
    every = served.index_copy(0, among, names)
    return TRAINING_SCALE * F.normalize(features) @ every.T
