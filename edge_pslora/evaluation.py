"""Measuring a published generation on data it has not seen: its ONNX file, in onnxruntime."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_pslora.data.options import ReadOptions
from edge_pslora.data.read import read_dataset
from edge_pslora.exporters.parity import agree
from edge_pslora.exporters.run import OnnxRunner, open_onnx
from edge_pslora.models.load import load_model
from edge_pslora.models.types import GivenModule
from edge_pslora.pipeline.judging import BATCH, Held, judged
from edge_pslora.pipeline.memory_files import load_memory, load_merged
from edge_pslora.pipeline.opening import require_same_kind, source_from_dict
from edge_pslora.pipeline.reading import options_for
from edge_pslora.tasks import TASKS, Task
from edge_pslora.training.batches import sorted_batches
from edge_pslora.training.classifier import Classifier, with_head
from edge_pslora.workspace import layout
from edge_pslora.workspace.workspace import Workspace


@dataclass(frozen=True)
class EvalResult:
    """accuracy: the figure that `metric` names, 1 is perfect; figures: all of the kind of task by name;
    per_label: label -> its share of the headline figure.

    unknown_labels: labels in the data that the generation does not know; they count as wrong.
    agreement: share of samples where torch and onnxruntime answer alike; None if not compared.
    max_abs_error: largest difference of a logit; None if not compared.
    """

    generation: int
    metric: str
    accuracy: float
    samples: int
    per_label: dict[str, float]
    figures: dict[str, float]
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
    model: GivenModule | None = None,
) -> EvalResult:
    """The score of a generation on `data`, or on its test part where it has one.

    Args:
        generation: a number; None: the one that serves.
        compare_torch: also run the torch model on every sample.
        model: the module of a workspace whose model was handed over from Python.

    Raises:
        EdgePsloraError: nothing is published, or the data does not fit.
    """
    opened = Workspace.open(Path(workspace))
    chosen = opened.published(generation)
    dataset = read_dataset(Path(data), options_for(opened, read or ReadOptions()))
    source = source_from_dict(opened.header.source)
    require_same_kind(opened, source, dataset)
    samples = dataset.test if dataset.test is not None else dataset.train
    loaded = load_model(source, opened.base, model)
    held = Held(loaded.encoder.encode(samples), samples.targets)
    head = load_memory(chosen).head
    task = TASKS[head.task_type]
    runner = open_onnx(chosen.file(layout.ONNX))
    found = judged(runner, held, head)[0]
    agreement = error = None
    if compare_torch:
        load_merged(loaded, chosen)
        agreement, error = _compare(with_head(loaded.backbone, head).eval(), runner, held, task)
    return EvalResult(
        chosen.number,
        task.metric,
        found.accuracy,
        len(samples),
        task.per_label(found.measures, samples.targets, head.labels),
        found.figures,
        tuple(sorted(task.labels_in(samples.targets) - set(head.labels))),
        len(dataset.rejected),
        agreement,
        error,
    )


def _compare(
    classifier: Classifier, runner: OnnxRunner, held: Held, task: Task
) -> tuple[float, float]:
    """(share of samples with the same answer, largest difference of an output)."""
    same, error = 0, 0.0
    for batch in sorted_batches(held.inputs.lengths(), BATCH):
        inputs = held.inputs.batch(batch)
        with torch.inference_mode():
            expected = classifier(**inputs).numpy()
        found = runner.run({name: tensor.numpy() for name, tensor in inputs.items()})
        same += int(agree(expected, found, task.predict).sum())
        error = max(error, float(np.abs(expected - found).max(initial=0.0)))
    return same / max(len(held.targets), 1), error
