"""How figures of one kind of task are called and written."""

from __future__ import annotations

from edge_pslora.charts.types import Format, percent, plain, points, signed

# how pages call the headline figure of a task
METRIC_NAMES = {
    "accuracy": "accuracy",
    "r2": "R2",
    "f1": "F1",
    "token_accuracy": "token accuracy",
}


def forms(metric: str) -> tuple[Format, Format]:
    """How a score and a difference of two are written: accuracies in percent, others as they are."""
    return (percent, points) if metric.endswith("accuracy") else (plain, signed)
