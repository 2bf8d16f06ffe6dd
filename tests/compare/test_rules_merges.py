"""MagMax, TIES and SLAO: the fold against all updates at once, literally and as PEFT has it."""

from __future__ import annotations

import pytest
import torch
from peft.utils.merge_utils import magnitude_based_pruning, ties

from edge_pslora.compare.rules.magmax import MagMax, larger
from edge_pslora.compare.rules.slao import Slao, averaged, orthonormal_rows, time_weight
from edge_pslora.compare.rules.ties import Ties, empty_sums, ties_merge, trimmed, with_vector
from edge_pslora.training.targets import as_matrix
from tests.compare.rules_kit import task, watched
from tests.reference_merge import merge_all


def _vectors(count: int, shape: tuple[int, int] = (5, 7)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


def test_the_magmax_fold_is_the_largest_of_all_running_sums():
    deltas = _vectors(4)
    running = largest = torch.zeros(5, 7)
    for delta in deltas:
        running = running + delta
        largest = larger(largest, running)
    literal = merge_all("cumulative", [d.numpy() for d in deltas])
    torch.testing.assert_close(largest.double(), torch.from_numpy(literal), rtol=1e-5, atol=1e-6)
    # the authors take the last of equals, which matters for ties alone
    sums = torch.stack(deltas).cumsum(0)
    chosen = sums.gather(0, sums.abs().argmax(0, keepdim=True))[0]
    torch.testing.assert_close(largest, chosen)


def test_magmax_goes_on_from_the_sum_and_deploys_the_largest():
    rule = MagMax()
    seen, learner = watched(rule)
    names = list(seen.rounds[0].adapters)
    deltas = {n: [r.adapters[n].delta() for r in seen.rounds] for n in names}
    for name in names:
        literal = merge_all("cumulative", [d.numpy() for d in deltas[name]])
        torch.testing.assert_close(
            seen.merged[-1][name].double(), torch.from_numpy(literal), rtol=1e-4, atol=1e-6
        )
        deployed = dict(learner.model.backbone.model.named_parameters())[f"{name}.weight"]
        base = learner.base(f"{name}.weight")
        torch.testing.assert_close(
            deployed.detach() - base, seen.merged[-1][name], atol=1e-6, rtol=0
        )
    entries = sum(M.numel() for M in seen.merged[-1].values())
    assert seen.kept == [4 * entries] * 3
    _, halved = watched(MagMax(scale=0.5), tasks=1)
    assert halved.kept_bytes == 8 * entries


def test_magmax_trains_each_session_on_the_running_sum():
    rule = MagMax()
    seen, _ = watched(rule, tasks=2)
    round = seen.rounds[1]
    for name, adapter in round.adapters.items():
        start = as_matrix(round.base(adapter.target.weight_name), adapter.target)
        first = seen.rounds[0].adapters[name].delta()
        torch.testing.assert_close(rule.running[name], first + adapter.delta())
        assert not torch.equal(start + first, start)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("density", [0.2, 0.6])
def test_ties_in_constant_memory_is_the_merge_of_all_vectors_at_once(count, density):
    vectors = _vectors(count)
    sums = empty_sums((5, 7))
    for vector in vectors:
        sums = with_vector(sums, vector, density)
    peft = ties(vectors, torch.ones(count), density)
    torch.testing.assert_close(ties_merge(sums), peft)
    assert sums.nbytes == 5 * 7 * (4 + 4 + 2 + 2)


def test_ties_literally():
    """Section 4 of the paper, an entry at a time."""
    vectors = _vectors(3, (2, 5))
    density, kept = 0.5, []
    for vector in vectors:
        entries = vector.ravel().tolist()
        limit = sorted((abs(x) for x in entries), reverse=True)[int(density * len(entries)) - 1]
        kept.append([x if abs(x) >= limit else 0.0 for x in entries])
    literal = []
    for values in zip(*kept, strict=True):
        sign = 1 if sum(values) >= 0 else -1
        agreeing = [x for x in values if x * sign > 0]
        literal.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    sums = empty_sums((2, 5))
    for vector in vectors:
        sums = with_vector(sums, vector, density)
    torch.testing.assert_close(ties_merge(sums).ravel(), torch.tensor(literal))


def test_trimming_is_that_of_peft():
    (vector,) = _vectors(1)
    assert torch.equal(trimmed(vector, 0.3), magnitude_based_pruning(vector, 0.3))


@pytest.mark.parametrize("independent", [False, True])
def test_the_ties_rule_merges_what_its_sessions_came_to(independent):
    seen, _ = watched(Ties(0.4, independent=independent))
    for name in seen.rounds[0].adapters:
        deltas = [round.adapters[name].delta() for round in seen.rounds]
        vectors = deltas if independent else list(torch.stack(deltas).cumsum(0))
        expected = ties(vectors, torch.ones(3), 0.4)
        torch.testing.assert_close(seen.merged[-1][name], expected, rtol=1e-4, atol=1e-6)
    entries = sum(M.numel() for M in seen.merged[-1].values())
    assert seen.kept == [(12 if independent else 16) * entries] * 3


def test_slao_rows_are_orthonormal_and_span_the_old_ones():
    A = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    Q = orthonormal_rows(A)
    torch.testing.assert_close(Q @ Q.T, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close((A @ Q.T) @ Q, A)
    # R = A Q^T transposed is upper triangular with a positive diagonal: the QR that is unique
    R = (A @ Q.T).T
    torch.testing.assert_close(R.tril(-1), torch.zeros_like(R), rtol=0, atol=1e-12)
    assert bool((R.diagonal() > 0).all())
    torch.testing.assert_close(orthonormal_rows(Q), Q)  # what is orthonormal stays


def test_slao_averages_over_time():
    Bs = _vectors(4)
    merged = Bs[0]
    for session, B in enumerate(Bs[1:], start=2):
        merged = averaged(merged, B, session)
    literal = Bs[0]
    for session, B in ((2, Bs[1]), (3, Bs[2]), (4, Bs[3])):
        literal = (1 - 1 / session**0.5) * literal + B / session**0.5
    torch.testing.assert_close(merged, literal)
    assert time_weight(1) == 1.0
    assert time_weight(4) == 0.5


def test_slao_goes_on_from_what_was_trained_and_deploys_the_average():
    def factors(round):
        return {n: (a.A.detach().clone(), a.B.detach().clone()) for n, a in round.adapters.items()}

    seen, learner = watched(Slao(), tasks=1)
    first = factors(seen.rounds[0])
    starts = []

    def look(round):
        starts.append(factors(round))
        for name, adapter in round.adapters.items():  # the base without any past
            W = as_matrix(round.weights[name].detach(), adapter.target)
            assert torch.equal(W, as_matrix(round.base(adapter.target.weight_name), adapter.target))

    seen.on_begin = look
    learner.learn(task(1))
    for name, adapter in seen.rounds[1].adapters.items():
        A, B = starts[0][name]
        torch.testing.assert_close(A, orthonormal_rows(first[name][0]))
        assert torch.equal(B, first[name][1])
        merged = averaged(first[name][1], adapter.B.detach(), 2)
        expected = adapter.scaling * merged @ adapter.A.detach()
        torch.testing.assert_close(seen.merged[1][name], expected)
    assert seen.kept[0] == seen.kept[1]
