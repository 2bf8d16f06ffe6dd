"""Rows of a linear head: old ones follow loss and merge rule, new ones are free."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edge_pslora.config import (
    MERGE_RULES,
    AdaptConfig,
    HeadConfig,
    MergeRule,
    StabilityConfig,
    paper_preset,
    sequential_preset,
)
from edge_pslora.core.merge import merge_step
from edge_pslora.training.head_rows import (
    add_to_rows,
    joined,
    merge_rows,
    past_of,
    protects_rows,
    row_penalty,
    row_stability,
    starting_rows,
)


def _rows(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rule", MERGE_RULES)
def test_rows_follow_the_fold_of_their_rule_since_they_were_learnt(rule: MergeRule):
    """Two labels are learnt in session 1, one more in session 2; both see sessions 2 and 3."""
    learnt = _rows(2, 0)
    empty = torch.zeros(0, 5)
    rows, past = merge_rows(rule, empty, empty, learnt, past_of(empty, None))
    assert torch.equal(rows, learnt)
    start = starting_rows(rows, past, rule)
    changes = [_rows(2, 1), _rows(2, 2)]
    new = _rows(1, 3)
    rows, past = merge_rows(rule, rows, start, torch.cat([start + changes[0], new]), past)
    assert torch.equal(rows[2:], new)
    start = starting_rows(rows, past, rule)
    change = torch.cat([changes[1], _rows(1, 4)])
    rows, past = merge_rows(rule, rows, start, start + change, past)
    first, second = (c.numpy() for c in changes)
    M = merge_step(rule, np.zeros((2, 5), np.float32), first, 1)
    M = merge_step(rule, M, first + second if rule == "cumulative" else second, 2)
    torch.testing.assert_close(rows[:2], learnt + torch.from_numpy(M), rtol=1e-4, atol=1e-5)
    # the younger row has seen one update
    torch.testing.assert_close(rows[2:], new + change[2:], rtol=1e-4, atol=1e-5)
    assert past.updates.tolist() == [2, 2, 1]
    torch.testing.assert_close(past.history[:2], changes[0] + changes[1], rtol=1e-4, atol=1e-5)
    assert torch.equal(past.origin, torch.cat([learnt, new]))


def test_the_penalty_pulls_old_rows_back_and_leaves_new_ones_alone():
    start = _rows(2, 0)
    past = replace(past_of(start, None), history=_rows(2, 1))
    trained = torch.cat([start + 0.1, _rows(1, 2)])
    weight = nn.Parameter(trained[:, :-1].clone())
    bias = nn.Parameter(trained[:, -1].clone())
    for parameter in (weight, bias):
        parameter.grad = torch.zeros_like(parameter)
    penalty = row_penalty(weight, bias, start, past)
    loss, pull = row_stability(penalty, StabilityConfig())
    add_to_rows(penalty, pull, 2.0)
    gradient = joined(weight.grad, bias.grad)
    assert float(loss) > 0
    assert not bool(gradient[2:].any())
    torch.testing.assert_close(gradient[:2], 2 * pull)
    # a step against the gradient goes back to where the rows were, not on
    assert float((gradient[:2] * 0.1).sum()) > 0


def test_a_head_without_bias_has_a_penalty_on_its_weight_alone():
    start = _rows(2, 0)
    start[:, -1] = 0.0
    weight = nn.Parameter(start[:, :-1] + 0.1)
    weight.grad = torch.zeros_like(weight)
    penalty = row_penalty(weight, None, start, past_of(start, None))
    loss, pull = row_stability(penalty, StabilityConfig())
    add_to_rows(penalty, pull, 1.0)
    assert float(loss) > 0
    torch.testing.assert_close(weight.grad, pull[:, :-1])


def test_rows_are_protected_where_there_is_something_to_protect_them_with():
    assert protects_rows(AdaptConfig())
    assert not protects_rows(sequential_preset())
    assert not protects_rows(paper_preset())
    assert not protects_rows(AdaptConfig(head=HeadConfig(protect=False)))
    assert protects_rows(replace(sequential_preset(), merge="average"))
