"""Ways to choose the ridge of an analytic head, on features that are never trained.

Everything but the head is taken out, so many choices can be compared on the same features.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from benchmarks.figures import StreamRun, summarised, summary
from edge_pslora.compare.scoring import EVAL_BATCH
from edge_pslora.compare.stream import Stream
from edge_pslora.config import HeadConfig
from edge_pslora.core.analytic_head import (
    HeadStatistics,
    add_samples,
    empty_statistics,
    solve_head,
    with_labels,
)
from edge_pslora.core.ridge_path import (
    RIDGES,
    RidgePath,
    leave_one_out,
    left_out_scores,
    ridge_path,
)
from edge_pslora.tasks import TASKS
from edge_pslora.training.features import extract_features
from edge_pslora.training.head import CLASS_SLACK, Head, sample_weights


@dataclass(frozen=True)
class Session:
    """features [N, d], one-hot columns [N, C], weights [N] or None."""

    features: torch.Tensor
    columns: torch.Tensor
    weights: torch.Tensor | None


Choose = Callable[[RidgePath, Session], float]


def _squares(slack: float, *, session_only: bool = False) -> Choose:
    def choose(path: RidgePath, s: Session) -> float:
        found = leave_one_out(path, s.features, s.columns, s.weights)
        if session_only:
            found = replace(found, old=(0.0,) * len(found.old))
        return found.best(slack)

    return choose


def _wrong_answers(path: RidgePath, s: Session) -> float:
    truth, wrong = s.columns.argmax(1), []
    for ridge in RIDGES:
        scores = left_out_scores(path, s.features, s.columns, ridge, s.weights)
        wrong.append(int((scores.argmax(1) != truth).sum()))
    return RIDGES[wrong.index(min(wrong))]


def _fixed(ridge: float) -> Choose:
    return lambda path, s: ridge


BALANCED = HeadConfig(class_balance="session")
CHOICES: dict[str, tuple[Choose, HeadConfig]] = {
    "least squared error": (_squares(0.0), HeadConfig()),
    "within 5 % (the product's)": (_squares(CLASS_SLACK), HeadConfig()),
    "within 5 %, balanced": (_squares(CLASS_SLACK), BALANCED),
    "within 5 %, session only": (_squares(CLASS_SLACK, session_only=True), HeadConfig()),
    "fewest wrong answers, session only": (_wrong_answers, HeadConfig()),
    **{f"ridge {r:g}": (_fixed(r), HeadConfig()) for r in (1e-3, 1e-2, 1e-1)},
    "ridge 0.01, balanced": (_fixed(1e-2), BALANCED),
}


def frozen_runs(stream: Stream, seed: int) -> list[StreamRun]:
    """One run for each way to choose; seconds: of statistics and solutions alone."""
    model = stream.new_model()
    parts = [
        [extract_features(model.backbone, data.inputs, EVAL_BATCH) for data in (t.train, t.test)]
        for t in stream.tasks
    ]
    runs = []
    for name, (choose, config) in CHOICES.items():
        start = time.process_time()
        statistics, matrix, chosen = empty_statistics(model.feature_size), [], []
        for task, (features, _) in zip(stream.tasks, parts, strict=True):
            labels = tuple(sorted(set(task.train.targets.astype(str).tolist())))
            statistics = with_labels(statistics, labels)
            targets = TASKS["classification"].encode(task.train.targets, statistics.labels)
            columns = F.one_hot(targets, len(statistics.labels))
            weights = sample_weights(columns, _head(statistics), config)
            statistics = add_samples(statistics, features, columns, weights)
            chosen.append(choose(ridge_path(statistics), Session(features, columns, weights)))
            weight, bias = solve_head(statistics, chosen[-1])
            matrix.append(
                tuple(
                    _accuracy(held, weight, bias, other.test.targets, statistics.labels)
                    for other, (_, held) in zip(stream.tasks, parts, strict=True)
                )
            )
        seconds = time.process_time() - start
        runs.append(summarised(f"frozen, {name}", seed, tuple(matrix), seconds))
        ridges = ", ".join(f"{ridge:.3g}" for ridge in chosen)
        print(f"  frozen, {name} ({ridges}): {summary(runs[-1])}", flush=True)
    return runs


def _head(statistics: HeadStatistics) -> Head:
    rows = len(statistics.labels)
    return Head("classification", statistics.labels, torch.zeros(rows, 1), torch.zeros(rows))


def _accuracy(
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    targets: npt.NDArray[np.str_],
    labels: tuple[str, ...],
) -> float:
    wanted = TASKS["classification"].encode(targets, labels)
    return float(((features @ weight.T + bias).argmax(1) == wanted).double().mean())
