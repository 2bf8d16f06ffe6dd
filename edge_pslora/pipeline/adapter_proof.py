"""What a file with an adapter active computes: against torch, and against the merged file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from edge_pslora.config import GateConfig
from edge_pslora.errors import GateRefusedError
from edge_pslora.exporters.parity import Parity, Predict, compare
from edge_pslora.exporters.run import OnnxRunner, open_onnx
from edge_pslora.models.types import EncodedInputs
from edge_pslora.pipeline.judging import BATCH, Held, judged, parity_batches
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
    pairs = []
    for batch in parity_batches(inputs):
        with torch.inference_mode():
            expected = classifier(**batch).numpy()
        found = runner.run({name: tensor.numpy() for name, tensor in batch.items()})
        pairs.append((expected, found))
    return compare(pairs, TASKS[head.task_type].predict)


def require_equal(parity: Parity, where: Path, limits: GateConfig) -> None:
    """Raises GateRefusedError: the outputs differ by more than is allowed of any export."""
    if (
        parity.max_abs_error <= limits.max_onnx_abs_error
        or parity.max_rel_error <= limits.max_onnx_rel_error
    ):
        return
    raise GateRefusedError(
        where.name,
        expected=f"outputs equal to torch's within {limits.max_onnx_abs_error:.1e}, "
        f"or {limits.max_onnx_rel_error:.1e} of the largest",
        found=f"a difference of {parity.max_abs_error:.1e}, {parity.max_rel_error:.1e} of it",
        remedy="nothing was written; report the model's architecture",
    )


def cost_of_cutting(generation: Generation, runner: OnnxRunner, held: Held, head: Head) -> Cost:
    """The generation's published model.onnx against `runner`, on all samples."""
    generation.verify([n for n in (layout.ONNX, layout.ONNX_DATA) if generation.has(n)])
    path = generation.path / layout.ONNX
    merged = open_onnx(path, threads=torch.get_num_threads())
    predict = TASKS[head.task_type].predict
    parity = _over_batches(_outputs(merged, runner, held.inputs), predict)
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


def _over_batches(pairs: Iterable[_Pair], predict: Predict | None) -> Parity:
    """As `compare`, one pair in memory at a time: a language model's outputs are large."""
    each = [compare([pair], predict) for pair in pairs]
    sizes = tuple(size for parity in each for size in parity.batch_sizes)
    agreeing = sum(parity.agreement * sum(parity.batch_sizes) for parity in each)
    return Parity(
        max(parity.max_abs_error for parity in each),
        max(parity.max_rel_error for parity in each),
        agreeing / sum(sizes),
        sizes,
    )
