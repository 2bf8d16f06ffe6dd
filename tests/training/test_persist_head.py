"""A head through arrays and back; its size does not grow with the sessions, only with the labels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from edge_pslora.core.analytic_head import add_samples, empty_statistics
from edge_pslora.core.gram_rank import compress_gram, restore_gram
from edge_pslora.errors import BudgetError, WorkspaceError
from edge_pslora.tasks.regression import ValueMoments
from edge_pslora.training.head import Head
from edge_pslora.training.head_rows import RowPast
from edge_pslora.training.persist_head import head_from_arrays, head_to_arrays
from edge_pslora.training.stored import Stored

VALUES = ValueMoments(4.0, 2.5, 9.0)
ENOUGH, SHORT = 16_000_000, 1024 + 7 * 4 * 33  # the latter: six directions of 32 features


def _analytic(sessions: int = 1, labels: tuple[str, ...] = ("a", "ü"), size: int = 32) -> Head:
    statistics = empty_statistics(size, labels)
    for seed in range(sessions):
        features = torch.randn(40, size, generator=torch.Generator().manual_seed(seed))
        columns = F.one_hot(torch.arange(40) % len(labels), len(labels))
        statistics = add_samples(statistics, features, columns)
    weight, bias = torch.randn(len(labels), size), torch.randn(len(labels))
    return Head("classification", labels, weight, bias, statistics, VALUES, ridge=0.1)


def _sizes(head: Head, budget: int) -> dict[str, int]:
    return {name: a.nbytes for name, a in head_to_arrays(head, budget).arrays.items()}


def test_an_analytic_head_comes_back_as_it_was():
    head = _analytic()
    back = head_from_arrays(head_to_arrays(head, ENOUGH), "here")
    assert (back.labels, back.target_scale, back.ridge) == (head.labels, VALUES.scale, 0.1)
    assert (back.kind, back.normalize, back.past) == ("analytic", False, None)
    assert torch.equal(back.weight, head.weight)
    assert back.statistics is not None
    assert head.statistics is not None
    torch.testing.assert_close(back.statistics.gram, head.statistics.gram, rtol=1e-6, atol=1e-6)
    assert torch.equal(back.statistics.squares, head.statistics.squares)
    assert back.statistics.samples == 40


def test_under_a_small_budget_the_gram_is_compressed_and_the_file_keeps_its_size():
    head = _analytic()
    stored = head_to_arrays(head, SHORT)
    assert "gram" not in stored.arrays
    assert stored.arrays["gram_vectors"].shape == (32, 6)
    assert sum(a.nbytes for n, a in stored.arrays.items() if n.startswith("gram")) <= SHORT
    back = head_from_arrays(stored, "here").statistics
    assert back is not None
    assert head.statistics is not None
    expected = restore_gram(compress_gram(head.statistics.gram, 6))
    torch.testing.assert_close(back.gram, expected, rtol=1e-5, atol=1e-4)
    for budget in (SHORT, ENOUGH):
        assert _sizes(_analytic(1), budget) == _sizes(_analytic(20), budget)
        more = _sizes(_analytic(1, ("a", "b", "c")), budget)
        grown = {n for n, size in _sizes(head, budget).items() if more[n] != size}
        assert grown == {"weight", "bias", "moment", "squares"}


def test_a_budget_without_room_for_one_direction_is_refused():
    with pytest.raises(BudgetError, match="--head-budget"):
        head_to_arrays(_analytic(), 1100)


def test_a_linear_head_keeps_its_past_and_has_no_other_arrays_without_one():
    head = Head("classification", ("a",), torch.randn(1, 4), torch.randn(1))
    assert set(head_to_arrays(head, ENOUGH).arrays) == {"weight", "bias"}
    past = RowPast(torch.randn(1, 5), torch.randn(1, 5), torch.tensor([3]))
    back = head_from_arrays(head_to_arrays(replace(head, past=past), ENOUGH), "here")
    assert back.past is not None
    for name in ("origin", "history", "updates"):
        assert torch.equal(getattr(back.past, name), getattr(past, name))
    assert back.past.updates.dtype == torch.int64


def test_a_label_text_head_keeps_its_template():
    head = Head("classification", ("a",), torch.randn(1, 4), torch.zeros(1), template="über {}")
    back = head_from_arrays(head_to_arrays(head, ENOUGH), "here")
    assert (back.kind, back.normalize, back.template) == ("label-text", True, "über {}")


BAD_VALUES = ("", "[1, 2]", "[1, 2, -3]", "[1, NaN, 3]", '["a", 1, 1]', "{}", "null")


@pytest.mark.parametrize("values", BAD_VALUES)
def test_moments_that_are_none_are_refused(values):
    stored = head_to_arrays(_analytic(), ENOUGH)
    damaged = Stored(stored.arrays, {**stored.metadata, "values": values})
    with pytest.raises(WorkspaceError, match="three moments of the targets"):
        head_from_arrays(damaged, "here")


@pytest.mark.parametrize(
    "damage", ["labels", "task", "moment", "squares", "gram_vectors", "row_history", "row_updates"]
)
def test_a_head_that_does_not_fit_together_is_refused(damage):
    head = _analytic()
    if damage.startswith("row"):
        rows = torch.randn(2, 33)
        head = replace(head, statistics=None, past=RowPast(rows, rows, torch.tensor([1, 0])))
    stored = head_to_arrays(head, SHORT)
    arrays, metadata = dict(stored.arrays), dict(stored.metadata)
    if damage == "labels":
        metadata["labels"] = "[]"
    elif damage == "task":
        metadata["task_type"] = "guessing"
    elif damage == "row_updates":
        del arrays[damage]
    else:
        arrays[damage] = arrays[damage][:-1]
    with pytest.raises(WorkspaceError, match="here: expected a head"):
        head_from_arrays(Stored(arrays, metadata), "here")
