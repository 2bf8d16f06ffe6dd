"""Judging a candidate: its ONNX file against torch, and against the serving model's on held-out data.

What is judged is the file that a device will run, in onnxruntime, not the torch module.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edge_pslora.config import GateConfig
from edge_pslora.core.gate import GateDecision, decide
from edge_pslora.errors import EdgePsloraError
from edge_pslora.exporters.parity import Parity, check_parity
from edge_pslora.exporters.run import OnnxRunner
from edge_pslora.models.types import EncodedInputs
from edge_pslora.training.batches import sorted_batches
from edge_pslora.training.classifier import Classifier
from edge_pslora.training.head import Head

BATCH = 32
PARITY_BATCHES = (1, 7)


@dataclass(frozen=True)
class Held:
    """Samples that were not trained on: inputs and targets (names or values)."""

    inputs: EncodedInputs
    targets: npt.NDArray[Any]


@dataclass(frozen=True)
class HeldAnchors(Held):
    """The anchors of earlier sessions; session: int32 [K], counted from 1."""

    session: npt.NDArray[np.int32]


def onnx_logits(runner: OnnxRunner, inputs: EncodedInputs) -> npt.NDArray[np.float32]:
    """Logits [N, C] of all samples, in their order."""
    rows: npt.NDArray[np.float32] | None = None
    for batch in sorted_batches(inputs.lengths(), BATCH):
        arrays = {name: tensor.numpy() for name, tensor in inputs.batch(batch).items()}
        logits = runner.run(arrays)
        if rows is None:
            rows = np.empty((len(inputs), logits.shape[1]), dtype=np.float32)
        rows[batch] = logits
    return rows if rows is not None else np.empty((0, 1), dtype=np.float32)


def sample_scores(
    logits: npt.NDArray[np.float32], targets: npt.NDArray[Any], head: Head, known: int | None = None
) -> list[float]:
    """Higher is better. Classification: 1.0 right, 0.0 wrong; regression: minus the squared error in
    units of the targets' variance. known: only the first so many labels compete."""
    if head.task_type == "regression":
        errors = (logits[:, 0] - targets.astype(np.float64)) / head.target_scale
        return [float(-e * e) for e in errors]
    labels = np.array(head.labels[:known], dtype=np.str_)
    predicted = labels[logits[:, : len(labels)].argmax(axis=1)]
    return [float(right) for right in predicted == targets.astype(np.str_)]


def score(scores: list[float], targets: npt.NDArray[Any], head: Head) -> float:
    """Accuracy, or for regression R^2 = 1 - mean squared error / variance."""
    mean = sum(scores) / max(len(scores), 1)
    if head.task_type == "classification":
        return mean
    variance = float(np.var(targets.astype(np.float64))) / head.target_scale**2
    return 1.0 + mean / variance if variance > 0 else mean


def constant_scores(train_targets: npt.NDArray[Any], held: Held, head: Head) -> list[float]:
    """Scores of a model that always gives the most frequent label, or the mean value."""
    if head.task_type == "regression":
        mean = float(np.mean(train_targets))
        errors = (held.targets.astype(np.float64) - mean) / head.target_scale
        return [float(-e * e) for e in errors]
    labels, counts = np.unique(train_targets.astype(np.str_), return_counts=True)
    return [float(right) for right in held.targets.astype(np.str_) == labels[counts.argmax()]]


def prove_export(
    classifier: Classifier, path: Path, inputs: EncodedInputs, config: GateConfig
) -> Parity:
    """torch against onnxruntime on this generation's own data, at two batch sizes and lengths.

    Raises:
        EdgePsloraError: they differ by more than the configured error, or in a prediction.
    """
    order = np.argsort(inputs.lengths(), kind="stable").astype(np.int64)
    # the shortest and the longest samples: other shapes than the example that was traced
    batches = [
        inputs.batch(order[:size] if i == 0 else order[-size:])
        for i, size in enumerate(min(n, len(order)) for n in PARITY_BATCHES)
    ]
    parity = check_parity(classifier, path, batches, threads=torch.get_num_threads())
    if not parity.max_abs_error <= config.max_onnx_abs_error:
        raise EdgePsloraError(
            str(path),
            expected=f"logits equal to torch's within {config.max_onnx_abs_error:.1e}",
            found=f"a difference of {parity.max_abs_error:.1e}",
            remedy="the old model was kept; report the model's architecture",
        )
    return parity


def judge(
    config: GateConfig,
    new: tuple[OnnxRunner, Head],
    old: tuple[OnnxRunner, Head] | None,
    holdout: Held,
    anchors: HeldAnchors | None,
    train_targets: npt.NDArray[Any],
) -> tuple[GateDecision, dict[str, Any]]:
    """The gate's decision, and the figures for the manifest.

    On the anchor set, labels that the old model did not know do not compete for the decision: a new
    class must not count as forgetting. Both figures are reported, and "by_session": for every earlier
    session with anchors its number and the candidate's score on them, all labels competing.
    """
    runner, head = new
    logits = onnx_logits(runner, holdout.inputs)
    after = sample_scores(logits, holdout.targets, head)
    before = anchor_old = anchor_new = None
    figures: dict[str, Any] = {"accuracy_after": score(after, holdout.targets, head)}
    figures |= {"accuracy_before": None, "retention": None}
    figures["by_session"] = []
    figures |= {"anchor_before": None, "anchor_after": None, "anchor_after_all_labels": None}
    if old is not None:
        old_runner, old_head = old
        before = sample_scores(onnx_logits(old_runner, holdout.inputs), holdout.targets, old_head)
        figures["accuracy_before"] = score(before, holdout.targets, old_head)
        if anchors is not None:
            known = None if head.task_type == "regression" else len(old_head.labels)
            old_logits = onnx_logits(old_runner, anchors.inputs)
            new_logits = onnx_logits(runner, anchors.inputs)
            anchor_old = sample_scores(old_logits, anchors.targets, old_head)
            anchor_new = sample_scores(new_logits, anchors.targets, head, known)
            everything = sample_scores(new_logits, anchors.targets, head)
            reached = score(anchor_old, anchors.targets, old_head)
            figures["anchor_before"] = reached
            figures["anchor_after"] = score(anchor_new, anchors.targets, head)
            figures["anchor_after_all_labels"] = score(everything, anchors.targets, head)
            figures["by_session"] = _by_session(everything, anchors, head)
            figures["retention"] = figures["anchor_after"] / reached if reached > 0 else None
    decision = decide(
        config,
        after,
        holdout_before=before,
        anchor_before=anchor_old,
        anchor_after=anchor_new,
        floor=constant_scores(train_targets, holdout, head),
    )
    figures["holdout_p"] = decision.figures.holdout_p
    figures["anchor_p"] = decision.figures.anchor_p
    return decision, figures


def _by_session(scores: list[float], anchors: HeldAnchors, head: Head) -> list[tuple[int, float]]:
    values = np.array(scores)
    rows = {int(number): anchors.session == number for number in np.unique(anchors.session)}
    return [
        (number, score(values[row].tolist(), anchors.targets[row], head))
        for number, row in rows.items()
    ]
