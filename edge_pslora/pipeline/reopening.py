"""A published generation as torch runs it, with samples that it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edge_pslora.data.options import ReadOptions
from edge_pslora.data.read import read_dataset
from edge_pslora.errors import UsageError
from edge_pslora.models.load import load_model
from edge_pslora.models.types import GivenModule, LoadedModel
from edge_pslora.pipeline.judging import Held
from edge_pslora.pipeline.memory_files import load_anchors, load_memory, load_merged
from edge_pslora.pipeline.onnx_metadata import onnx_metadata
from edge_pslora.pipeline.opening import require_same_kind, source_from_dict
from edge_pslora.pipeline.preparing import held_anchors
from edge_pslora.pipeline.reading import options_for
from edge_pslora.training.classifier import Classifier, with_head
from edge_pslora.training.memory import Memory
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.workspace import Workspace


@dataclass(frozen=True)
class Reopened:
    """model carries the generation's merged weights; classifier is the model under its head.

    held: N >= 1 samples to prove, measure and calibrate with.
    """

    workspace: Workspace
    generation: Generation
    model: LoadedModel
    memory: Memory
    classifier: Classifier
    held: Held

    def example(self) -> dict[str, torch.Tensor]:
        """The model's keyword inputs for the first one or two samples."""
        return self.held.inputs.batch(np.arange(min(2, len(self.held.inputs)), dtype=np.int64))

    def metadata(self) -> dict[str, str]:
        """What the generation's ONNX files say of themselves."""
        config = self.generation.manifest.config
        return onnx_metadata(
            self.workspace, self.model, self.generation.number, config, self.memory.head
        )


def reopen(
    workspace: Workspace,
    generation: Generation,
    data: Path | None = None,
    read: ReadOptions | None = None,
    module: GivenModule | None = None,
) -> Reopened:
    """Loads the base, the generation's weights and head, and the samples.

    Args:
        data: where the samples come from: its valid part, or test part, or all; None: the anchors that
            the generation keeps.
        module: of a workspace whose model was handed over from Python.

    Raises:
        UsageError: no data, and the generation keeps no anchors.
        EdgePsloraError: the base was changed, or data of another kind.
    """
    workspace.verify_base()
    source = source_from_dict(workspace.header.source)
    model = load_model(source, workspace.base, module)
    memory = load_memory(generation)
    load_merged(model, generation)
    if data is not None:
        dataset = read_dataset(data, options_for(workspace, read or ReadOptions()))
        require_same_kind(workspace, source, dataset)
        parts = (dataset.valid, dataset.test, dataset.train)
        samples = next(part for part in parts if part is not None)
        held: Held | None = Held(model.encoder.encode(samples), samples.targets)
    else:
        held = held_anchors(model, load_anchors(generation))
    if held is None or not len(held.targets):
        raise UsageError(
            "--data",
            expected=f"samples to prove generation {generation.number} with",
            found="none: it keeps no anchors",
            remedy="give a file or folder as for `adapt`",
        )
    classifier = with_head(model.backbone, memory.head).eval()
    return Reopened(workspace, generation, model, memory, classifier, held)
