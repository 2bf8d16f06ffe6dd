"""O-LoRA, N-LoRA, ELLA: the formula against a literal one, and what the rule does in a session."""

from __future__ import annotations

import math

import pytest
import torch

from edge_pslora.compare.rule import updates
from edge_pslora.compare.rules.ella import Ella, energy_overlap, shrunk, squared_scale
from edge_pslora.compare.rules.nlora import collision_rate, n_lora, update_size
from edge_pslora.compare.rules.olora import OLora, overlap
from edge_pslora.core.stability import stability_target
from tests.compare.rules_kit import watched


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("power", [1, 2])
def test_olora_sums_every_product_of_a_new_row_with_an_earlier_one(power):
    A, earlier = _random(2, 5), [_random(2, 5, seed=k) for k in (1, 2)]
    literal = 0.0
    for A_i in earlier:  # Eq. 7: O_i,t = A_i^T A_t, the paper's A being the transpose
        for row in A_i.tolist():
            for new in A.tolist():
                literal += abs(math.fsum(x * y for x, y in zip(row, new, strict=True))) ** power
    assert float(overlap(A, torch.cat(earlier), power)) == pytest.approx(literal, rel=1e-12)


def test_olora_keeps_every_a_and_turns_new_ones_away_from_them():
    seen, learner = watched(OLora(weight=3.0))
    free, _ = watched(OLora(weight=0.0))
    assert seen.losses[0] == [0.0] * len(seen.losses[0])  # nothing to be orthogonal to
    for number in (1, 2):
        found, unheld = (
            sum(
                float(
                    overlap(r.adapters[name].A.detach(), rule.rounds[0].adapters[name].A.detach())
                )
                for name in r.adapters
            )
            for rule in (seen, free)
            for r in [rule.rounds[number]]
        )
        assert found < 0.7 * unheld
    sizes = [4 * 2 * a.target.shape[1] for a in seen.rounds[0].adapters.values()]
    assert seen.kept == [sum(sizes), 2 * sum(sizes), 3 * sum(sizes)]
    assert learner.kept_bytes == 3 * sum(sizes)


def test_nlora_is_the_l1_norm_of_the_update_relative_to_its_layer():
    A, B = _random(2, 5), _random(4, 2, seed=1)
    literal = math.fsum(
        abs(1.5 * math.fsum(B[i, k].item() * A[k, j].item() for k in range(2)))
        for i in range(4)
        for j in range(5)
    )
    assert float(update_size(A, B, 1.5)) == pytest.approx(literal, rel=1e-12)
    seen, _ = watched(n_lora(0.0), tasks=1)
    round = seen.rounds[0]
    relative = [
        float(delta.abs().sum() / round.base(round.adapters[name].target.weight_name).abs().sum())
        for name, delta in updates(round).items()
    ]
    loss = n_lora(2.0).loss(round, None)
    assert float(loss.detach()) == pytest.approx(2.0 * sum(relative) / len(relative), rel=1e-5)


def test_nlora_makes_updates_smaller_and_they_collide_less():
    free, _ = watched(n_lora(0.0))
    sparse, _ = watched(n_lora(30.0))

    def rates(seen):
        firsts = {n: a.delta() for n, a in seen.rounds[0].adapters.items()}
        seconds = {n: a.delta() for n, a in seen.rounds[1].adapters.items()}
        return [collision_rate(firsts[n], seconds[n], 1e-2) for n in firsts]

    assert sum(rates(sparse)) < 0.8 * sum(rates(free))
    one, other = torch.tensor([1.0, 0.0, -2.0, 0.0]), torch.tensor([0.5, 1.0, 0.0, 0.0])
    assert collision_rate(one, other) == 0.25


def test_ella_is_the_square_of_every_product_with_the_past():
    D, S = _random(3, 4), _random(3, 4, seed=1)
    literal = math.fsum(
        (d * s) ** 2 for d, s in zip(D.ravel().tolist(), S.ravel().tolist(), strict=True)
    )
    assert float(energy_overlap(D, S)) == pytest.approx(literal, rel=1e-12)


def test_ella_shrinks_a_step_where_the_past_has_its_energy():
    """The paper's closed form is where the gradient of step and penalty vanishes."""
    G, S = _random(3, 4), _random(3, 4, seed=1)
    D = shrunk(G, S, 0.7).requires_grad_()
    ((D - G).square().sum() + 0.7 * energy_overlap(D, S)).backward()
    torch.testing.assert_close(D.grad, torch.zeros_like(D), rtol=0, atol=1e-12)
    share = (shrunk(G, S, 0.7) / G).ravel()
    assert torch.equal(share.argsort(), (-S.abs()).ravel().argsort())


def test_ella_has_the_units_of_the_stability_loss():
    left, right = _random(6, 2).float(), _random(2, 5, seed=1).float()
    base = _random(6, 5, seed=2).float()
    target = stability_target(left, right, float(base.square().mean().sqrt()))
    square = float((left @ right).square().mean())
    assert squared_scale(square, float(base.square().mean())) ** 0.5 == pytest.approx(target.scale)
    seen, _ = watched(Ella(weight=1.0), tasks=2)
    round, rule = seen.rounds[1], seen.inner
    expected = []
    for name, D in updates(round).items():
        S = round.past[name]
        W0 = round.base(round.adapters[name].target.weight_name)
        scale = squared_scale(float(S.square().mean()), float(W0.square().mean()))
        expected.append(float((D * S / S.square().mean().sqrt()).square().mean()) / scale)
    assert float(rule.loss(round, None).detach()) == pytest.approx(
        sum(expected) / len(expected), rel=1e-4
    )


def test_ella_holds_back_where_the_past_is_large_and_stores_nothing():
    free, _ = watched(Ella(weight=0.0), tasks=2)
    held, learner = watched(Ella(weight=20.0), tasks=2)
    overlaps = [
        sum(
            float(energy_overlap(D, seen.rounds[1].past[name]))
            for name, D in updates(seen.rounds[1]).items()
        )
        for seen in (held, free)
    ]
    assert overlaps[0] < 0.8 * overlaps[1]
    assert learner.kept_bytes == 0
