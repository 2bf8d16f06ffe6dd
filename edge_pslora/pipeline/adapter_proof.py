"""What a file with an adapter active computes: against torch, and against the merged file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from edge_pslora.errors import GateRefusedError
from edge_pslora.exporters.parity import Parity, compare
from edge_pslora.exporters.run import OnnxRunner, open_onnx
from edge_pslora.models.types import EncodedInputs
from edge_pslora.pipeline.judging import BATCH, Held, judged
from edge_pslora.pipeline.proving import short_and_long
from edge_pslora.tasks import TASKS
from edge_pslora.training.batches import sorted_batches
from edge_pslora.training.classifier import Classifier
from edge_pslora.training.head import Head
from edge_pslora.workspace import layout
from edge_pslora.workspace.generation import Generation


@dataclass(frozen=True)
class Cost:
    """What cutting the factors cost on N samples, against the generation's own model.onnx.

    agreement: share of samples with the same prediction. accuracy: the headline figure, merged: of the
    merged file. max_abs_error: of an output.
    """

    samples: int
    agreement: float
    max_abs_error: float
    accuracy: float
    merged: float


def against_torch(
    classifier: Classifier, runner: OnnxRunner, inputs: EncodedInputs, head: Head
) -> Parity:
    """Both on two batches of other sizes and lengths."""
    pairs, task = [], TASKS[head.task_type]
    for batch in short_and_long(inputs):
        with torch.inference_mode():
            expected = classifier(**batch).numpy()
        found = runner.run({name: tensor.numpy() for name, tensor in batch.items()})
        pairs.append((expected, found))
    return compare(pairs, task.predict, task.margin)


def cost_of_cutting(generation: Generation, runner: OnnxRunner, held: Held, head: Head) -> Cost:
    """The generation's published model.onnx against `runner`, on all samples."""
    generation.verify([n for n in (layout.ONNX, layout.ONNX_DATA) if generation.has(n)])
    path = generation.path / layout.ONNX
    merged = open_onnx(path, threads=torch.get_num_threads())
    task = TASKS[head.task_type]
    parity = compare(_outputs(merged, runner, held.inputs), task.predict, task.margin)
    return Cost(
        len(held.targets),
        parity.agreement,
        parity.max_abs_error,
        judged(runner, held, head)[0].accuracy,
        judged(merged, held, head)[0].accuracy,
    )


def require_small(cost: Cost, where: Path, max_drop: float) -> None:
    """Raises GateRefusedError: the headline figure fell by more than max_drop."""
    if cost.merged - cost.accuracy <= max_drop:
        return
    raise GateRefusedError(
        where.name,
        expected=f"at most {100 * max_drop:g} points below the merged model",
        found=f"{cost.accuracy:.3f} after {cost.merged:.3f} on {cost.samples} samples",
        remedy="nothing was written; raise --max-rank, or allow more by --max-drop",
    )


_Pair = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


def _outputs(merged: OnnxRunner, adapted: OnnxRunner, inputs: EncodedInputs) -> Iterable[_Pair]:
    for batch in sorted_batches(inputs.lengths(), BATCH):
        arrays = {name: tensor.numpy() for name, tensor in inputs.batch(batch).items()}
        yield merged.run(arrays), adapted.run(arrays)
