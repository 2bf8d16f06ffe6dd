"""The label-text head: a class is the embedding of its name by the text encoder in training.

Logits are scale * cosine(features, embedding). The embeddings are made anew from the weights that
serve, so a label needs no samples and there is nothing to forget. In training both sides move: the
texts and the names of the session's labels, which compete among themselves; names of other labels
have no sample here that could pull them, and a softmax over all would only push them away.
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


def competing(targets: torch.Tensor, labels: int) -> torch.Tensor:
    """int64 [K]: positions of the session's labels; of all, where a single one could teach nothing.

    targets: int64 [N], positions among `labels` labels.
    """
    found = torch.tensor(sorted(set(targets.tolist())))
    return found if len(found) > 1 else torch.arange(labels)


def training_logits(
    backbone: Backbone, texts: LabelTexts, among: torch.Tensor, features: torch.Tensor, labels: int
) -> torch.Tensor:
    """[B, labels] for features [B, d]; minus infinity for labels that do not compete."""
    names = F.normalize(backbone(**texts.inputs.batch(among.numpy())))  # [K, d]
    cosines = F.normalize(features) @ names.T
    logits = cosines.new_full((len(features), labels), -torch.inf)
    return logits.index_copy(1, among, TRAINING_SCALE * cosines)
