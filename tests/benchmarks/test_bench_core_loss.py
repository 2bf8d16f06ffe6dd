"""What is measured is what is claimed: every way is run, and bytes are counted to the byte."""

from __future__ import annotations

import pytest
import torch

from benchmarks.core_loss import DEFAULT, WAYS, measure_loss, peak_bytes

# torch's profiler says that it starts and stops
pytestmark = pytest.mark.filterwarnings("ignore:.*[Pp]rofiler")


def test_bytes_held_at_once_are_counted_and_results_are_not():
    x = torch.zeros(1000)
    assert peak_bytes(lambda: x.view(10, 100)) == 0
    assert peak_bytes(lambda: x.add_(x)) == 0
    assert peak_bytes(lambda: x + x) == 0  # only the result
    assert peak_bytes(lambda: (x + x) * x) == 4000  # and one temporary
    assert peak_bytes(lambda: torch.dot(x + x, x * x)) == 8000


def test_every_way_is_measured():
    shapes = [(40, 30), (40, 30), (10, 50)]
    figures = measure_loss(shapes, rank=2, history_rank=3, repeats=2, threads=1)
    by_name = {figure.name: figure for figure in figures}
    assert list(by_name) == ["naive", *WAYS]
    assert WAYS["default"] == DEFAULT
    for figure in figures:
        assert len(figure.seconds) == 2
        assert min(figure.seconds) > 0
    elements = 2 * 40 * 30 + 10 * 50
    # the naive loss keeps several matrices of the size of the weights, ours none
    assert by_name["naive"].scratch_bytes > 3 * 4 * elements
    assert by_name["int8"].kept_bytes == elements + 3 * 2 * 8
    factors = 4 * 3 * sum(out + size for out, size in shapes)
    assert by_name["exact"].kept_bytes == factors + 3 * 2 * 8


def test_ours_does_not_grow_with_the_layer():
    small, large = (
        {f.name: f.scratch_bytes for f in measure_loss([(n, 600)], 2, 2, 1, 1)}
        for n in (1000, 4000)
    )
    assert large["naive"] > 3 * small["naive"]
    assert large["default"] < 1.3 * small["default"]
