"""Judging a candidate: its ONNX file against torch, and against the serving model's on held-out data.

What is judged is the file that a device will run, in onnxruntime, not the torch module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_pslora.config import GateConfig
from edge_pslora.core.agreement import Table, association_p
from edge_pslora.core.gate import NOTHING_LEARNED, GateDecision, LabelEvidence, decide
from edge_pslora.core.novelty import novelty
from edge_pslora.exporters.run import OnnxRunner
from edge_pslora.models.types import EncodedInputs
from edge_pslora.tasks import TASKS, Task
from edge_pslora.tasks.types import Measures
from edge_pslora.training.batches import sorted_batches, spread
from edge_pslora.training.head import Head
from edge_pslora.training.head_session import Alone, Unseen

BATCH = 32
MOST_ASKED = 1000  # training samples that the serving model is asked about


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
    for batch in sorted_batches(held.inputs.lengths(), min(BATCH, runner.most_rows)):
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


def judge(
    config: GateConfig,
    new: tuple[OnnxRunner, Head],
    old: tuple[OnnxRunner, Head] | None,
    holdout: Held,
    anchors: HeldAnchors | None,
    train: Held,
    unseen: Unseen | None = None,
    updates: Mapping[str, float] | None = None,
) -> tuple[GateDecision, dict[str, Any]]:
    """The gate's decision, and the figures for the manifest.

    train: the session's training samples, for what the serving model makes of their labels. unseen:
    what heads that have not seen them make of some. updates: layer -> |D| / |W0|.

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
    before = anchor_old = anchor_new = labels = None
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
            models = ((old_runner, old_head), head)
            on_anchors = anchors, (anchor_old, anchor_new)
            labels = _evidence(*models, (before, after), holdout, train, unseen, on_anchors)
    floor = task.constant(train.targets, holdout.targets, head.target_scale)
    decision = decide(
        config,
        after.scores,
        holdout_before=None if before is None else before.scores,
        anchor_before=None if anchor_old is None else anchor_old.scores,
        anchor_after=None if anchor_new is None else anchor_new.scores,
        floor=None if floor is None else floor.tolist(),
        labels=labels,
        updates=updates,
    )
    figures["holdout_p"] = decision.figures.holdout_p
    figures["anchor_p"] = decision.figures.anchor_p
    figures["learned_p"] = decision.figures.learned_p
    figures["known_p"] = decision.figures.known_p
    figures["alone_p"] = decision.figures.alone_p
    figures["novelty"] = decision.figures.novelty
    figures["contradicted_p"] = decision.figures.contradicted_p
    figures["gained_p"] = decision.figures.gained_p
    figures["anchor_sure_before"] = decision.figures.sure_before
    figures["anchor_sure_after"] = decision.figures.sure_after
    return decision, figures


def _evidence(
    old: tuple[OnnxRunner, Head],
    head: Head,
    on_holdout: tuple[Judged, Judged],
    holdout: Held,
    train: Held,
    unseen: Unseen | None,
    on_anchors: tuple[HeldAnchors, tuple[Judged, Judged]],
) -> LabelEvidence | None:
    """What speaks for the session's labels; None: this kind of task does not tell.

    The serving model has seen none of the session's samples, so all of them say what it makes of them.

    Args:
        on_holdout, on_anchors: the serving model, and the new one.
    """
    runner, old_head = old
    task = TASKS[head.task_type]
    if task.answers is None:
        return None
    rows = unseen.rows if unseen is not None else spread(len(train.targets), MOST_ASKED)
    asked = Held(_Part(train.inputs, rows), train.targets[rows])
    served = judged(runner, asked, old_head)[0].measures
    known = _familiar(task, asked.targets, old_head), _familiar(task, holdout.targets, old_head)
    before, after = (found.measures for found in on_holdout)
    targets = np.concatenate([holdout.targets[known[1]], asked.targets[known[0]]])
    both = {
        name: np.concatenate([values[known[1]], served[name][known[0]]])
        for name, values in before.items()
    }
    learned, labels, sure, alone = after, holdout.targets, known[1], None
    old_scores = before["score"][known[1]]
    if unseen is not None:
        more = task.measure(unseen.logits, asked.targets, {}, head.labels, head.target_scale)
        learned = {name: np.concatenate([values, more[name]]) for name, values in after.items()}
        labels, sure = np.concatenate([labels, asked.targets]), np.concatenate([sure, known[0]])
        old_scores = np.concatenate([old_scores, served["score"][known[0]]])
        alone = unseen.alone
    anchors, (anchor_old, anchor_new) = on_anchors
    there = _by_label(task, anchors.targets, anchor_old.measures["score"] == 1)
    here = _by_label(task, targets, both["score"] == 1)
    learned_p = association_p(*task.answers(learned, labels), NOTHING_LEARNED)
    # what was learned says enough of nearly all sessions, and novelty costs an eigendecomposition
    doubtful = alone is not None and learned_p is not None and learned_p >= NOTHING_LEARNED
    return LabelEvidence(
        learned_p,
        association_p(*task.answers(both, targets), NOTHING_LEARNED),
        _alone_p(task, alone, asked.targets, head) if alone is not None else None,
        novelty(alone.past, alone.features) if alone is not None and doubtful else None,
        tuple(Table(*here[label], *there[label]) for label in here if label in there),
        before=old_scores.tolist(),
        after=learned["score"][sure].tolist(),
        sure_before=anchor_old.measures.get("sure", np.empty(0)).tolist(),
        sure_after=anchor_new.measures.get("sure", np.empty(0)).tolist(),
    )


def _alone_p(task: Task, alone: Alone, targets: npt.NDArray[Any], head: Head) -> float | None:
    """targets: of the samples Unseen.rows."""
    assert task.answers is not None
    asked = targets[alone.rows]
    measures = task.measure(alone.logits, asked, {}, head.labels, head.target_scale)
    return association_p(*task.answers(measures, asked), NOTHING_LEARNED)


def _by_label(
    task: Task, targets: npt.NDArray[Any], right: npt.NDArray[np.bool_]
) -> dict[frozenset[str], tuple[int, int]]:
    """Label, or set of labels that a sample has -> how many samples with it are right, of how many."""
    counts: dict[frozenset[str], tuple[int, int]] = {}
    for row, hit in enumerate(right.tolist()):
        label = frozenset(task.labels_in(targets[row : row + 1]))
        hits, of = counts.get(label, (0, 0))
        counts[label] = hits + hit, of + 1
    return counts


def _familiar(task: Task, targets: npt.NDArray[Any], head: Head) -> npt.NDArray[np.bool_]:
    """Of which samples the head knows all labels."""
    labels = set(head.labels)
    found = [task.labels_in(targets[i : i + 1]) <= labels for i in range(len(targets))]
    return np.array(found, np.bool_)


@dataclass(frozen=True)
class _Part:
    """Some of the samples of other inputs."""

    whole: EncodedInputs
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: npt.NDArray[np.int64]) -> dict[str, Any]:
        return self.whole.batch(self.rows[indices])

    def lengths(self) -> npt.NDArray[np.int64]:
        return self.whole.lengths()[self.rows]

    def to_arrays(self, indices: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        return self.whole.to_arrays(self.rows[indices])


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
