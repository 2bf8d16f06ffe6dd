"""Judging a candidate: its ONNX file against torch, and against the serving model's on held-out data.

What is judged is the file that a device will run, in onnxruntime, not the torch module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edge_pslora.config import GateConfig
from edge_pslora.core.gate import GateDecision, decide
from edge_pslora.errors import GateRefusedError, ModelError
from edge_pslora.exporters.parity import ROUNDING, Parity, check_parity
from edge_pslora.exporters.run import OnnxRunner
from edge_pslora.models.types import EncodedInputs
from edge_pslora.tasks import TASKS, Task
from edge_pslora.tasks.types import Measures
from edge_pslora.training.batches import sorted_batches
from edge_pslora.training.classifier import Classifier
from edge_pslora.training.head import Head

BATCH = 32
PARITY_BATCHES = (1, 7)
_KEPT = "the old model was kept, forced or not; report the model's architecture"


@dataclass(frozen=True)
class Held:
    """Samples that were not trained on: inputs and targets (names or values)."""

    inputs: EncodedInputs
    targets: npt.NDArray[Any]


@dataclass(frozen=True)
class HeldAnchors(Held):
    """The anchors of earlier sessions; session: int32 [K], counted from 1."""

    session: npt.NDArray[np.int32]


Labels = Sequence[str]


def run_measures(
    runner: OnnxRunner, held: Held, head: Head, competing: Sequence[Labels]
) -> list[Measures]:
    """The task's measures of all samples, in their order, for each set of labels that compete.

    The model runs once a batch; outputs are not kept, since those of a language model would not fit.
    """
    task = TASKS[head.task_type]
    rows: list[Measures] = [{} for _ in competing]
    for batch in sorted_batches(held.inputs.lengths(), BATCH):
        arrays = {name: tensor.numpy() for name, tensor in held.inputs.batch(batch).items()}
        outputs = runner.run(arrays)
        for row, labels in zip(rows, competing, strict=True):
            measures = task.measure(outputs, held.targets[batch], arrays, labels, head.target_scale)
            for name, values in measures.items():
                if name not in row:
                    row[name] = np.empty((len(held.targets), *values.shape[1:]), values.dtype)
                row[name][batch] = values
    return rows


@dataclass(frozen=True)
class Judged:
    """What one model reaches on some samples. figures: name -> value, see tasks.types.Task."""

    measures: Measures
    figures: dict[str, float]

    @property
    def scores(self) -> list[float]:
        return [float(score) for score in self.measures["score"]]

    @property
    def accuracy(self) -> float:
        return self.figures["accuracy"]


def judged(
    runner: OnnxRunner, held: Held, head: Head, competing: Sequence[Labels] | None = None
) -> list[Judged]:
    """One Judged for each set of labels that compete; None: one, with all that the head knows."""
    task = TASKS[head.task_type]
    return [
        Judged(measures, task.figures(measures, held.targets, head.target_scale))
        for measures in run_measures(runner, held, head, competing or [head.labels])
    ]


def prove_export(
    classifier: Classifier,
    path: Path,
    inputs: EncodedInputs,
    config: GateConfig,
    task: Task,
    *,
    axes: Mapping[str, tuple[str, ...]] | None = None,
    unit: float = 1.0,
) -> Parity:
    """torch against onnxruntime on this generation's own data, at two batch sizes and lengths.

    Args:
        inputs: those of the session: they are many, and a fault of the graph shows on any. (Held-out ones
            beside them refused sound files of ill-conditioned heads, whose logits cancel.)
        axes: the model's free axes, see LoadedModel: where all samples have one length and the model
            takes any, one of them is shortened.
        unit: of an output; what the absolute limit is counted in.

    Raises:
        GateRefusedError: they differ by more than the configured error, or in a decision that is no
            tie, or the file does not run at one of the sizes. `--force` does not help.
    """
    free = [name for name, names in (axes or {}).items() if len(names) > 1]
    batches = _short_and_long(inputs, free)
    threads = torch.get_num_threads()
    try:
        parity = check_parity(
            classifier, path, batches, threads=threads, predict=task.predict, margin=task.margin
        )
    except ModelError as problem:
        raise GateRefusedError(
            str(path),
            expected="a file that runs at every batch size and length",
            found=problem.found,
            remedy=_KEPT,
        ) from problem
    lengths = tuple(batch[free[0]].shape[1] for batch in batches) if free else ()
    absolute, relative = config.max_onnx_abs_error * unit, config.max_onnx_rel_error
    if parity.dtype in ("float16", "bfloat16"):
        absolute, relative = ROUNDING[parity.dtype] * unit, ROUNDING[parity.dtype]
    parity = replace(parity, lengths=lengths)
    if not parity.within(absolute, relative):
        raise GateRefusedError(
            str(path),
            expected=f"outputs equal to torch's within {absolute:.1e}, or {relative:.1e} of the largest",
            found=f"a difference of {parity.max_abs_error:.1e}, {parity.max_rel_error:.1e} of it",
            remedy=_KEPT,
            figures=parity_figures(parity),
        )
    if parity.differing:
        raise GateRefusedError(
            str(path),
            expected="torch's predictions wherever its outputs are not level",
            found=f"{parity.differing} others ({parity.agreement:.2%} agree, {parity.ties} are level)",
            remedy=_KEPT,
            figures=parity_figures(parity),
        )
    return parity


def parity_figures(parity: Parity) -> dict[str, Any]:
    """For the manifest and `--json`: JSON values, so an error that is not finite is None."""
    errors = {"abs": parity.max_abs_error, "rel": parity.max_rel_error}
    return {
        **{f"onnx_max_{n}_error": e if np.isfinite(e) else None for n, e in errors.items()},
        "onnx_agreement": parity.agreement,
        "onnx_ties": parity.ties,
        "onnx_dtype": parity.dtype,
        "onnx_batch_sizes": list(parity.batch_sizes),
        "onnx_lengths": list(parity.lengths),
    }


def _short_and_long(inputs: EncodedInputs, free: Sequence[str]) -> list[dict[str, torch.Tensor]]:
    """The shortest and the longest samples: other shapes than the example that was traced."""
    order = np.argsort(inputs.lengths(), kind="stable").astype(np.int64)
    few, many = (min(size, len(order)) for size in PARITY_BATCHES)
    short, long = inputs.batch(order[:few]), inputs.batch(order[-many:])
    if free and short[free[0]].shape[1] == long[free[0]].shape[1] > 2:
        short |= {name: short[name][:, :-1] for name in free}
    return [short, long]


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
    task = TASKS[head.task_type]
    after = judged(runner, holdout, head)[0]
    figures: dict[str, Any] = {f"{name}_after": value for name, value in after.figures.items()}
    figures |= {"accuracy_before": None, "retention": None, "by_session": []}
    figures |= {"anchor_before": None, "anchor_after": None, "anchor_after_all_labels": None}
    before = anchor_old = anchor_new = None
    if old is not None:
        old_runner, old_head = old
        old_head = replace(old_head, values=head.values)  # both in the same unit
        before = judged(old_runner, holdout, old_head)[0]
        figures |= {f"{name}_before": value for name, value in before.figures.items()}
        if anchors is not None:
            anchor_old = judged(old_runner, anchors, old_head)[0]
            competing = [old_head.labels, head.labels]
            anchor_new, everything = judged(runner, anchors, head, competing)
            reached = anchor_old.accuracy
            figures["anchor_before"] = reached
            figures["anchor_after"] = anchor_new.accuracy
            figures["anchor_after_all_labels"] = everything.accuracy
            figures["by_session"] = _by_session(everything, anchors, head)
            figures["retention"] = anchor_new.accuracy / reached if reached > 0 else None
    floor = task.constant(train_targets, holdout.targets, head.target_scale)
    decision = decide(
        config,
        after.scores,
        holdout_before=None if before is None else before.scores,
        anchor_before=None if anchor_old is None else anchor_old.scores,
        anchor_after=None if anchor_new is None else anchor_new.scores,
        floor=None if floor is None else floor.tolist(),
    )
    figures["holdout_p"] = decision.figures.holdout_p
    figures["anchor_p"] = decision.figures.anchor_p
    return decision, figures


def _by_session(found: Judged, anchors: HeldAnchors, head: Head) -> list[tuple[int, float]]:
    """Session number -> accuracy on its anchors."""
    task = TASKS[head.task_type]
    result = []
    for number in np.unique(anchors.session):
        rows = anchors.session == number
        measures = {name: values[rows] for name, values in found.measures.items()}
        figures = task.figures(measures, anchors.targets[rows], head.target_scale)
        result.append((int(number), figures["accuracy"]))
    return result
