"""Metrics of a stream, on a matrix small enough to check by hand."""

from __future__ import annotations

import pytest

from edge_pslora.core import metrics

R = [[0.9, 0.1, 0.2], [0.7, 0.8, 0.3], [0.6, 0.9, 0.7]]


def test_each_metric_by_hand():
    assert metrics.average_accuracy(R) == pytest.approx((0.6 + 0.9 + 0.7) / 3)
    assert metrics.learning_accuracy(R) == pytest.approx((0.9 + 0.8 + 0.7) / 3)
    assert metrics.backward_transfer(R) == pytest.approx(((0.6 - 0.9) + (0.9 - 0.8)) / 2)
    assert metrics.forgetting(R) == pytest.approx(((0.9 - 0.6) + (0.8 - 0.9)) / 2)
    assert metrics.forward_transfer(R, [0.0, 0.25, 0.25]) == pytest.approx(
        ((0.1 - 0.25) + (0.3 - 0.25)) / 2
    )


def test_forgetting_is_not_minus_backward_transfer():
    rising_then_falling = [[0.5, 0.0, 0.0], [0.9, 0.5, 0.0], [0.6, 0.5, 0.5]]
    assert (
        metrics.forgetting(rising_then_falling)
        > 0
        > -metrics.backward_transfer(rising_then_falling)
    )


@pytest.mark.parametrize("metric", [metrics.backward_transfer, metrics.forgetting])
def test_one_task_has_no_transfer(metric):
    with pytest.raises(ValueError, match="at least 2 tasks"):
        metric([[0.5]])


def test_a_matrix_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match="square matrix"):
        metrics.average_accuracy([[0.5, 0.5], [0.5]])
