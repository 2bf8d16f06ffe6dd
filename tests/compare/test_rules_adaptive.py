"""PS-LoRA as a rule against the product, the weight that follows the data, the merge by line search."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edge_pslora.compare.learners.held_out import HeldOutLearner, hold_out
from edge_pslora.compare.product import ProductLearner
from edge_pslora.compare.rule import PlainRule, live_update
from edge_pslora.compare.rules.conflict import NEUTRAL, conflict, opposition, weight_for
from edge_pslora.compare.rules.dynamic import LOOKS, Dynamic
from edge_pslora.compare.rules.held import HeldOut
from edge_pslora.compare.rules.line_search import SHARES, LineSearch, best_share
from edge_pslora.compare.rules.pslora import PsLora, stability_loss
from edge_pslora.compare.trainer import LoraLearner
from edge_pslora.config import StabilityConfig
from tests.compare.rules_kit import learned, setup, task, watched
from tests.reference import stability_loss as literal_loss


def _parameters(learner: object) -> list[torch.Tensor]:
    return [p.detach().clone() for p in learner.model.backbone.parameters()]


@pytest.mark.parametrize("merge", ["constructive", "none"])
def test_the_rule_is_the_product_under_the_same_settings(merge):
    """All of a session: penalty, merge, history, cross-fitted head, transport."""
    stability = StabilityConfig(weight=0.5, row_stride=1)

    def change(config):
        head = replace(config.head, kind="analytic")
        return replace(config, stability=stability, merge=merge, head=head)

    product = learned(ProductLearner(setup(), change))
    rule = PsLora(stability, merge)
    own = learned(LoraLearner(setup(), rule, "analytic", held=True))
    for one, other in zip(_parameters(product), _parameters(own), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for name, layer in product.memory.history.items():
        torch.testing.assert_close(layer.dense(), rule.history[name].dense(), rtol=1e-2, atol=1e-4)
    assert product.kept_bytes == own.kept_bytes
    assert product.trained == own.trained


def test_the_loss_and_its_gradient_are_those_of_the_literal_reference():
    seen, _ = watched(PsLora(StabilityConfig(row_stride=1)), tasks=2)
    round, penalty = seen.rounds[1], seen.inner.penalty
    found = stability_loss(penalty, 0)
    pairs = [p for a in round.adapters.values() for p in (a.A, a.B)]
    gradients = torch.autograd.grad(found, pairs)
    literal = []
    for adapter in round.adapters.values():
        S = seen.rounds[0].adapters[adapter.target.name].delta().double()
        W0 = round.base(adapter.target.weight_name).double()
        scale = float((S.square().mean() + 0.05**2 * W0.square().mean()).sqrt())
        A, B = adapter.A.double(), adapter.B.double()
        literal.append(literal_loss(A, B, adapter.scaling, S, scale, 1.0, "elementwise"))
    expected = torch.stack(literal).mean()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-2)
    for one, other in zip(gradients, torch.autograd.grad(expected, pairs), strict=True):
        cosine = torch.nn.functional.cosine_similarity(one.ravel(), other.ravel(), dim=0)
        assert float(cosine) > 0.999  # S is kept in bytes


def test_conflict_is_the_share_of_what_undoes_the_past():
    G, S = torch.tensor([2.0, -1.0, 3.0, 0.0]), torch.tensor([1.0, 1.0, -1.0, 5.0])
    assert conflict([(G, S)]) == pytest.approx(2 / 6)  # only the first entry goes back
    assert conflict([(S, S)]) == 1.0
    assert conflict([(-S, S)]) == 0.0
    assert conflict([(S, torch.zeros(4))]) == NEUTRAL
    assert conflict([]) == NEUTRAL
    assert conflict([(G, S), (S, S)]) == pytest.approx((2 + 28) / (6 + 28))


def test_opposition_is_the_angle_between_all_gradients():
    one, other = [torch.randn(3, 2), torch.randn(4)], [torch.randn(3, 2), torch.randn(4)]
    flat = [torch.cat([t.ravel() for t in ts]).double() for ts in (one, other)]
    cosine = float(flat[0] @ flat[1] / (flat[0].norm() * flat[1].norm()))
    found = opposition(zip(one, other, strict=True))
    assert found == pytest.approx((1 - cosine) / 2)
    assert opposition([(one[0], one[0])]) == pytest.approx(0.0, abs=1e-12)
    assert opposition([(one[0], -one[0])]) == pytest.approx(1.0)
    assert opposition([(one[0], torch.zeros(3, 2))]) == NEUTRAL


def test_the_weight_rises_with_the_conflict():
    assert weight_for(NEUTRAL, 0.1) == pytest.approx(0.1)
    assert weight_for(1.0, 0.1) == pytest.approx(1.0)
    assert weight_for(0.0, 0.1) == pytest.approx(0.01)
    assert weight_for(0.75, 0.1) == pytest.approx(0.1 * 10**0.5)


def test_anchors_say_how_much_the_new_undoes_the_old():
    """The gradient on the anchors, literally, before the first step; they are never trained on."""
    rule = Dynamic(held=HeldOut())
    learner = HeldOutLearner(setup(), rule, "analytic")
    learned(learner, 1)
    anchors = rule.held.anchors
    assert len(anchors) == 4  # a tenth of 20 of each of two labels
    expected = []
    settle = rule._settle

    def look(round):
        weights = list(round.weights.values())
        with torch.enable_grad():
            _, logits = round.answer({"x": torch.from_numpy(anchors.inputs["x"])})
            wanted = round.task.encode(anchors.targets, round.labels)
            loss = torch.nn.functional.cross_entropy(logits, wanted)
            expected.append(torch.autograd.grad(loss, weights))
        for name, matrix in zip(round.weights, expected[0], strict=True):
            torch.testing.assert_close(rule.old[name], matrix, rtol=1e-4, atol=1e-6)

    begin = rule.begin
    rule.begin = lambda round: (begin(round), look(round))

    def settled(round):
        new = {name: g.clone() for name, g in rule.gradients.items()}
        settle(round)
        pairs = [(new[n], g) for n, g in zip(round.weights, expected[0], strict=True)]
        assert rule.conflicts[-1] == pytest.approx(opposition(pairs), rel=1e-4)

    rule._settle = settled
    learner.learn(task(1))
    assert len(rule.conflicts) == 2
    assert rule.weight == weight_for(rule.conflicts[-1], 0.1)
    assert learner.kept_bytes == rule.inner.kept_bytes + rule.held.nbytes + 8 * (33 * 33 + 34 * 4)


def test_the_weight_of_a_session_is_set_by_its_first_gradients():
    rule = Dynamic()
    seen, _ = watched(rule, "analytic")
    assert rule.conflicts[0] == NEUTRAL
    assert len(rule.conflicts) == 3
    assert all(0 < c < 1 and c != NEUTRAL for c in rule.conflicts[1:])
    assert rule.weight == weight_for(rule.conflicts[-1], 0.1)
    for round in seen.rounds:
        assert not any(w.requires_grad or w.grad is not None for w in round.weights.values())


def test_the_conflict_is_that_of_a_gradient_by_the_weights():
    """The first batch's, literally: autograd by dense weights, outside the loop."""
    rule = Dynamic()
    seen, learner = watched(rule, tasks=1)
    found = []

    def look(round):
        for name in round.weights:
            round.weights[name].requires_grad_(True)

    def first_gradients():
        before = rule._settle

        def settle(round):
            found.append({name: g.clone() for name, g in rule.gradients.items()})
            before(round)

        rule._settle = settle

    seen.on_begin = look
    first_gradients()
    expected = {}
    plain = seen.loss

    def loss(round, step):
        if rule.looks < LOOKS:
            names = list(round.weights)
            gradients = torch.autograd.grad(
                step.task_loss, [round.weights[n] for n in names], retain_graph=True
            )
            for name, gradient in zip(names, gradients, strict=True):
                expected[name] = expected.get(name, 0) + gradient
        return plain(round, step)

    seen.loss = loss
    learner.learn(task(1))
    assert len(found) == 1
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, expected[name])
    assert rule.conflicts[-1] == pytest.approx(
        conflict((expected[n], seen.rounds[1].past[n]) for n in expected)
    )


def test_dynamic_without_a_look_back_is_ps_lora():
    """In the first session there is nothing to be in conflict with."""
    one, other = (
        learned(LoraLearner(setup(), rule, "analytic"), 1)
        for rule in (Dynamic(), PsLora(StabilityConfig(most_pull=None)))
    )
    for a, b in zip(_parameters(one), _parameters(other), strict=True):
        assert torch.equal(a, b)


def test_a_tenth_of_each_label_is_held_out():
    data = task(0, n=30)
    rest, held = hold_out(data, 0.1, np.random.Generator(np.random.PCG64([1])))
    assert sorted(held.targets.tolist()) == ["a"] * 3 + ["b"] * 3
    rows = [d.inputs.batch(np.arange(len(d.targets)))["x"] for d in (rest, held)]
    together = sorted(map(tuple, torch.cat(rows).tolist()))
    assert together == sorted(map(tuple, data.inputs.rows.tolist()))
    assert hold_out(task(0, n=3), 0.1, np.random.Generator(np.random.PCG64([1])))[1] is None


def test_the_best_share_is_that_of_the_least_loss():
    rule = LineSearch()
    seen, _ = watched(rule, tasks=1)
    round = seen.rounds[0]
    data = task(0, seed=9)
    found = []

    def search(round):
        before = {n: a.B.detach().clone() for n, a in round.adapters.items()}
        losses = {}
        for share in SHARES:  # by hand: one forward pass with each adapter scaled
            with torch.no_grad():
                for name, adapter in round.adapters.items():
                    adapter.B.copy_(share * before[name])
                _, logits = round.answer(data.inputs.batch(np.arange(len(data.targets))))
                wanted = round.task.encode(data.targets, round.labels)
                losses[share] = float(torch.nn.functional.cross_entropy(logits, wanted))
                for name, adapter in round.adapters.items():
                    adapter.B.copy_(before[name])
        found.append((best_share(round, [data]), min(losses, key=losses.__getitem__)))
        assert all(torch.equal(a.B, before[n]) for n, a in round.adapters.items())

    seen.on_end = search
    learned(LoraLearner(setup(), seen), 1)
    assert found[0][0] == found[0][1]
    assert len(round.data.targets) == 40


def test_line_search_deploys_the_share_it_chose_and_counts_what_it_stores():
    learner = learned(HeldOutLearner(setup(), LineSearch()))
    rule = learner.rule
    assert rule.chosen[0] == 1.0
    assert len(rule.chosen) == 3
    assert set(rule.chosen) <= set(SHARES)
    assert sorted(np.unique(rule.held.anchors.session)) == [1, 2, 3]
    assert learner.kept_bytes == len(rule.held.anchors) * (6 * 4 + 4)  # no history without a loss
    known = {tuple(row) for k in range(3) for row in task(k).inputs.rows.tolist()}
    assert {tuple(row) for row in rule.held.anchors.inputs["x"].tolist()} <= known


def test_a_part_of_an_update_is_what_is_added_and_remembered():
    rule = LineSearch()
    rule_losses = {}
    seen, learner = watched(rule, tasks=1)
    learner.learn(task(1))
    for name, adapter in seen.rounds[1].adapters.items():
        D = live_update(adapter).detach()
        torch.testing.assert_close(seen.merged[1][name], seen.rounds[1].past[name] + D)
        rule_losses[name] = float(D.norm())
    assert all(size > 0 for size in rule_losses.values())
    plain = learned(LoraLearner(setup(), PlainRule()), 2)
    for a, b in zip(_parameters(plain), _parameters(learner), strict=True):
        torch.testing.assert_close(a, b)
