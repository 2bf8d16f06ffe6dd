"""G under a byte budget: the trace stays, the error of the head falls with the budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from edge_pslora.core.analytic_head import add_samples, augment, empty_statistics, solve_head
from edge_pslora.core.gram_rank import compress_gram, gram_rank, restore_gram
from edge_pslora.errors import BudgetError

SIZE, CLASSES = 64, 5


def _features(n: int = 600, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes apart in a few strong directions, and a falling spectrum as networks have it."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.linalg.qr(
        torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(7)).double()
    )[0]
    labels = torch.randint(CLASSES, (n,), generator=g)
    latent = torch.randn(n, SIZE, generator=g).double() * torch.logspace(0, -2.5, SIZE)
    latent[:, :CLASSES] += 2 * F.one_hot(labels, CLASSES)
    return latent @ mixing + 0.5, labels


def _agreement(rank: int) -> tuple[float, float]:
    """(share of equal answers, largest difference of a score) with the exact head."""
    features, labels = _features()
    labels_of = tuple("abcde")
    exact = add_samples(empty_statistics(SIZE, labels_of), features, F.one_hot(labels, CLASSES))
    low = replace(exact, gram=restore_gram(compress_gram(exact.gram, rank)))
    fresh, _ = _features(seed=1)
    scores = [
        augment(fresh) @ torch.cat([w.T, b[None]]).double()
        for w, b in (solve_head(s, 1e-2) for s in (exact, low))
    ]
    same = (scores[0].argmax(1) == scores[1].argmax(1)).double().mean()
    return float(same), float((scores[0] - scores[1]).abs().max())


def test_the_error_of_predictions_falls_with_the_rank_and_is_none_at_full_rank():
    found = [_agreement(rank) for rank in (2, 16, 32, SIZE)]
    assert [same for same, _ in found] == sorted(same for same, _ in found)
    assert found[1][0] > 0.9
    assert found[2][0] > 0.99
    assert found[3][0] == 1.0
    assert found[3][1] < 1e-9


def test_trace_sums_and_count_are_kept():
    features, labels = _features()
    gram = add_samples(empty_statistics(SIZE), features, labels.new_zeros(len(labels), 0)).gram
    for rank in (1, 7, SIZE):
        back = restore_gram(compress_gram(gram, rank))
        torch.testing.assert_close(back.trace(), gram.trace())
        torch.testing.assert_close(back[-1], gram[-1])
        torch.testing.assert_close(back, back.T)
        assert float(torch.linalg.eigvalsh(back)[0]) > -1e-8


def test_the_statistics_of_no_sample_survive():
    gram = empty_statistics(4).gram
    assert not bool(restore_gram(compress_gram(gram, 2)).any())


def test_the_budget_decides_the_rank_and_names_the_least_that_would_do():
    assert gram_rank(1024, 16_000_000) is None
    ranks = [gram_rank(4096, budget) for budget in (1_000_000, 16_000_000)]
    assert ranks == [59, 975]
    with pytest.raises(BudgetError, match="--head-budget: expected at least") as caught:
        gram_rank(4096, 20_000)
    least = int(caught.value.expected.split()[2])
    assert gram_rank(4096, least) == 1
    with pytest.raises(BudgetError):
        gram_rank(4096, least - 1)
