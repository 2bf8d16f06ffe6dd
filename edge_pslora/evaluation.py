"""Measuring a published generation on data it has not seen: its ONNX file, in onnxruntime."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_pslora.data.options import ReadOptions
from edge_pslora.data.read import read_dataset
from edge_pslora.exporters.run import open_onnx
from edge_pslora.models.load import load_model
from edge_pslora.models.types import EncodedInputs, LoadedModel
from edge_pslora.pipeline.judging import onnx_logits, sample_scores, score
from edge_pslora.pipeline.memory_files import load_memory, load_merged
from edge_pslora.pipeline.opening import require_same_kind, source_from_dict
from edge_pslora.training.classifier import Classifier, linear_head
from edge_pslora.training.features import run_batches
from edge_pslora.training.head import Head
from edge_pslora.workspace import layout
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.workspace import Workspace


@dataclass(frozen=True)
class EvalResult:
    """accuracy: a fraction, or R^2 where metric is "r2"; per_label: label -> its accuracy.

    unknown_labels: labels in the data that the generation does not know; they count as wrong.
    agreement: share of samples where torch and onnxruntime answer alike; None if not compared.
    max_abs_error: largest difference of a logit; None if not compared.
    """

    generation: int
    metric: str
    accuracy: float
    samples: int
    per_label: dict[str, float]
    unknown_labels: tuple[str, ...] = ()
    rejected: int = 0
    agreement: float | None = None
    max_abs_error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    workspace: Path | str,
    data: Path | str,
    *,
    generation: int | None = None,
    read: ReadOptions | None = None,
    compare_torch: bool = False,
) -> EvalResult:
    """The score of a generation on `data`, or on its test part where it has one.

    Args:
        generation: a number; None: the one that serves.
        compare_torch: also run the torch model on every sample.

    Raises:
        EdgePsloraError: nothing is published, or the data does not fit.
    """
    opened = Workspace.open(Path(workspace))
    chosen = opened.published(generation)
    read = read or ReadOptions()
    task_type = read.task_type or opened.header.task_type
    dataset = read_dataset(Path(data), replace(read, task_type=task_type))
    source = source_from_dict(opened.header.source)
    require_same_kind(opened, source, dataset)
    samples = dataset.test if dataset.test is not None else dataset.train
    model = load_model(source, opened.base)
    inputs = model.encoder.encode(samples)
    head = load_memory(chosen).head
    logits = onnx_logits(open_onnx(chosen.file(layout.ONNX)), inputs)
    scores = sample_scores(logits, samples.targets, head)
    agreement = error = None
    if compare_torch:
        agreement, error = _compare(model, chosen, head, inputs, logits)
    return EvalResult(
        chosen.number,
        "r2" if head.task_type == "regression" else "accuracy",
        score(scores, samples.targets, head),
        len(samples),
        _per_label(scores, samples.targets, head),
        _unknown(samples.targets, head),
        len(dataset.rejected),
        agreement,
        error,
    )


def _compare(
    model: LoadedModel, generation: Generation, head: Head, inputs: EncodedInputs, logits: Any
) -> tuple[float, float]:
    load_merged(model, generation)
    linear = linear_head(head.weight, head.bias)
    classifier = Classifier(model.backbone, linear, head.normalize).eval()
    expected = run_batches(classifier, inputs, 32).numpy()
    error = float(np.abs(expected - logits).max())
    if head.task_type == "regression":
        return float(np.isclose(expected, logits, rtol=1e-4).mean()), error
    return float(np.mean(expected.argmax(axis=1) == logits.argmax(axis=1))), error


def _per_label(scores: list[float], targets: Any, head: Head) -> dict[str, float]:
    if head.task_type == "regression":
        return {}
    names = targets.astype(np.str_)
    return {
        str(label): float(np.mean(np.array(scores)[names == label])) for label in np.unique(names)
    }


def _unknown(targets: Any, head: Head) -> tuple[str, ...]:
    if head.task_type == "regression":
        return ()
    return tuple(str(x) for x in np.unique(targets.astype(np.str_)) if str(x) not in head.labels)
