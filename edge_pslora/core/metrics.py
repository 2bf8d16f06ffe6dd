"""Metrics of a stream of T tasks from R[i][j], the accuracy on task j after training task i.

Pure Python, no argument is changed. Definitions: METHOD.md, "Metrics". With one task, backward
transfer, forgetting and forward transfer are undefined and raise ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _tasks(R: Matrix, least: int) -> int:
    tasks = len(R)
    if tasks < least or any(len(row) != tasks for row in R):
        raise ValueError(
            f"accuracy matrix: expected a square matrix of at least {least} tasks; "
            f"found rows of {[len(row) for row in R]}"
        )
    return tasks


def average_accuracy(R: Matrix) -> float:
    """mean_j R[T-1][j]."""
    return _mean(R[_tasks(R, 1) - 1])


def learning_accuracy(R: Matrix) -> float:
    """mean_j R[j][j]: accuracy on each task just after learning it."""
    return _mean([R[j][j] for j in range(_tasks(R, 1))])


def backward_transfer(R: Matrix) -> float:
    """mean_{j < T-1} R[T-1][j] - R[j][j]; negative when later tasks hurt earlier ones."""
    last = _tasks(R, 2) - 1
    return _mean([R[last][j] - R[j][j] for j in range(last)])


def forgetting(R: Matrix) -> float:
    """mean_{j < T-1} max_{i < T-1} R[i][j] - R[T-1][j]; may be negative, is not -BWT."""
    last = _tasks(R, 2) - 1
    return _mean([max(R[i][j] for i in range(last)) - R[last][j] for j in range(last)])


def forward_transfer(R: Matrix, untrained: Sequence[float]) -> float:
    """mean_{j >= 1} R[j-1][j] - b_j, b_j = accuracy of the untrained model on task j."""
    tasks = _tasks(R, 2)
    if len(untrained) != tasks:
        raise ValueError(f"untrained: expected {tasks} accuracies; found {len(untrained)}")
    return _mean([R[j - 1][j] - untrained[j] for j in range(1, tasks)])
