"""What a device gets of a published generation: its ONNX file, run where there is no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge_pslora.models.types import GivenModule
from edge_pslora.pipeline.reopening import reopen
from edge_pslora.workspace.workspace import Workspace
from tests.torch_free import TorchFree, assert_the_device_agrees

# the axis of the outputs along which the largest decides; labels of a set decide each by its sign
AXES = {"classification": 1, "regression": 1, "multilabel": None, "language": 2}


def assert_a_device_runs_it(
    device: TorchFree, workspace: Path, module: GivenModule | None = None
) -> None:
    """The file that serves gives what the merged model gives in torch, on the anchors it keeps.

    At two batch sizes and, where the model takes any length, at three lengths.
    """
    opened = Workspace.open(workspace)
    generation = opened.published(None)
    found = reopen(opened, generation, module=module)
    inputs = found.held.inputs
    order = np.argsort(inputs.lengths(), kind="stable").astype(np.int64)
    assert len(order) > 1
    batches = [inputs.batch(order[:1]), inputs.batch(order[-5:])]
    free = {name for name, axes in found.model.dynamic_axes.items() if len(axes) > 1}
    if free:
        longest = batches[1]
        for cut in (2, 4):
            shorter = {n: v[:, : v.shape[1] - cut] if n in free else v for n, v in longest.items()}
            batches.append(shorter)
    axis = AXES[found.memory.head.task_type]
    path = generation.file("model.onnx")
    assert_the_device_agrees(device, path, found.classifier, batches, axis=axis)
