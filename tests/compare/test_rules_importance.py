"""EWC, SI, L2-SP, LwF, averaging and full fine-tuning, each against its formula written out slowly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edge_pslora.compare.learners.finetune import RATE_SHARE, FineTuneLearner
from edge_pslora.compare.rule import Round, updates
from edge_pslora.compare.rules.average import average_rule
from edge_pslora.compare.rules.ewc import EWC, empirical_fisher, ewc_penalty, online_fisher
from edge_pslora.compare.rules.l2sp import L2SP, l2sp_penalty
from edge_pslora.compare.rules.lwf import LwF, distillation
from edge_pslora.compare.rules.si import SI, importance, path_step
from edge_pslora.compare.trainer import LoraLearner
from edge_pslora.training.batches import epoch_batches
from tests.compare.rules_kit import Seen, average, learned, setup, task, watched
from tests.tiny import tiny_model


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _numbers(tensor: torch.Tensor) -> list[float]:
    return tensor.flatten().tolist()


def test_ewc_is_half_lambda_times_the_weighted_squares():
    fisher = {"w": _random(3, 4).abs(), "head.bias": _random(2, seed=1).abs()}
    change = {"w": _random(3, 4, seed=2), "head.bias": _random(2, seed=3), "new": _random(5)}
    literal = math.fsum(
        f * c * c
        for name in fisher
        for f, c in zip(_numbers(fisher[name]), _numbers(change[name]), strict=True)
    )
    assert float(ewc_penalty(fisher, change, 6.0)) == pytest.approx(3 * literal, rel=1e-12)


def test_online_fisher_fades_and_gives_new_rows_their_own():
    old = {"head.weight": torch.tensor([[2.0], [4.0]])}
    new = {"head.weight": torch.tensor([[1.0], [1.0], [3.0]]), "w": torch.tensor([5.0])}
    found = online_fisher(old, new, 0.5)
    assert found["head.weight"].flatten().tolist() == [2.0, 3.0, 3.0]
    assert found["w"].tolist() == [5.0]


@pytest.mark.parametrize("kind", ["linear", "analytic"])
def test_the_fisher_is_the_mean_squared_gradient_of_each_samples_likelihood(kind):
    found: dict[str, torch.Tensor] = {}
    literal: dict[str, torch.Tensor] = {}

    def on_end(round: Round) -> None:
        found.update(empirical_fisher(round, samples=10_000))
        deltas = updates(round)
        model = tiny_model().backbone
        weights = dict(model.model.named_parameters())
        with torch.no_grad():
            for name, parameter in weights.items():
                parameter.copy_(dict(round.model.backbone.model.named_parameters())[name])
            for name, delta in deltas.items():
                weights[f"{name}.weight"].add_(delta)
        for i in range(len(round.data.targets)):
            sample = torch.tensor([i])
            leaves = [weights[f"{name}.weight"].requires_grad_(True) for name in deltas]
            leaves += list(round.head.values())
            features = model(**round.data.inputs.batch(np.array([i])))
            logits = round.logits(features, sample)
            chance = F.log_softmax(logits, 1)[0, int(round.wanted[i])]
            names = [*deltas, *(f"head.{name}" for name in round.head)]
            for name, g in zip(names, torch.autograd.grad(chance, leaves), strict=True):
                square = g.square() / len(round.data.targets)
                literal[name] = literal.get(name, torch.zeros_like(g)) + square

    seen = Seen(EWC())
    seen.on_end = on_end
    LoraLearner(setup(), seen, kind).learn(task(0, n=6))
    assert set(found) == set(literal)
    assert ("head.weight" in found) == (kind == "linear")
    for name, value in literal.items():
        torch.testing.assert_close(found[name], value, rtol=2e-3, atol=1e-9)


def test_ewc_holds_what_the_fisher_marks_and_keeps_one_number_a_parameter():
    free, _ = watched(EWC(strength=0.0), tasks=2)
    held, learner = watched(EWC(strength=1e5, samples=8), tasks=2)
    moved, stayed = (
        sum(float((s.merged[1][n] - s.merged[0][n]).norm()) for n in s.merged[0])
        for s in (free, held)
    )
    assert stayed < 0.7 * moved
    weights = sum(m.numel() for m in held.merged[0].values())
    rows = learner.head.weight.numel() + learner.head.bias.numel()
    assert held.kept[-1] == 4 * (weights + rows)


def test_si_adds_gradient_times_step_and_divides_by_the_way():
    gradient, moved = ({"w": _random(2, 3, seed=s)} for s in (1, 2))
    path = path_step({"w": _random(2, 3)}, gradient, moved)["w"]
    literal = [
        p - g * m
        for p, g, m in zip(
            *(_numbers(t) for t in (_random(2, 3), gradient["w"], moved["w"])), strict=True
        )
    ]
    assert _numbers(path) == pytest.approx(literal, rel=1e-12)
    change = {"w": _random(2, 3, seed=3)}
    old = {"w": torch.ones(1, 3, dtype=torch.float64)}  # a head of one row so far
    found = importance(old, {"w": path}, change, 0.1)["w"]
    wanted = [
        max(0.0, p / (c * c + 0.1)) for p, c in zip(literal, _numbers(change["w"]), strict=True)
    ]
    wanted = [w + (1.0 if i < 3 else 0.0) for i, w in enumerate(wanted)]
    assert _numbers(found) == pytest.approx(wanted, rel=1e-12)


def test_the_path_of_si_adds_up_to_what_the_loss_fell_by():
    losses: list[float] = []
    seen = Seen(rule := SI())
    totals: list[float] = []

    def note(round: Round) -> None:
        _, logits = round.answer(round.data.inputs.batch(np.arange(len(round.data.targets))))
        losses.append(float(round.task_loss(logits, round.wanted, {}).detach()))

    def on_end(round: Round) -> None:
        note(round)
        totals.append(sum(float(path.sum()) for path in rule.path.values()))

    seen.on_begin, seen.on_end = note, on_end
    # whole batches in many small steps: the integral along the path is nearly exact
    LoraLearner(setup(epochs=60, batch_size=100, learning_rate=5e-4), seen).learn(task(0))
    fallen = losses[0] - losses[1]
    assert fallen > 0.1
    assert totals[0] == pytest.approx(fallen, rel=0.1)


def test_si_leaves_the_weights_without_gradients_and_holds_what_mattered():
    free, _ = watched(SI(strength=0.0), tasks=2)
    held, learner = watched(SI(strength=1e4), tasks=2)
    moved, stayed = (
        sum(float((s.merged[1][n] - s.merged[0][n]).norm()) for n in s.merged[0])
        for s in (free, held)
    )
    assert stayed < 0.8 * moved
    assert all(p.grad is None and not p.requires_grad for p in learner.model.backbone.parameters())


def test_l2sp_is_two_sums_of_squares():
    change, rows = {"w": _random(3, 4), "b": _random(2)}, {"head.weight": _random(2, 5, seed=1)}
    near = math.fsum(c * c for t in change.values() for c in _numbers(t))
    new = math.fsum(c * c for c in _numbers(rows["head.weight"]))
    found = float(l2sp_penalty(change, rows, 0.3, 0.7))
    assert found == pytest.approx(0.15 * near + 0.35 * new, rel=1e-12)
    assert float(l2sp_penalty(change, {}, 2.0, 1.0)) == pytest.approx(near, rel=1e-12)
    strong, _ = watched(L2SP(alpha=100.0), tasks=1)
    free, _ = watched(L2SP(alpha=0.0), tasks=1)
    sizes = [sum(float(m.norm()) for m in s.merged[0].values()) for s in (strong, free)]
    assert sizes[0] < 0.5 * sizes[1]


def test_distillation_is_the_cross_entropy_of_softened_answers():
    logits, old = _random(3, 4), _random(3, 4, seed=1)
    literal = 0.0
    for now, then in zip(logits.tolist(), old.tolist(), strict=True):
        soft = [math.exp(z / 2) for z in then]
        log_now = [z / 2 - math.log(math.fsum(math.exp(y / 2) for y in now)) for z in now]
        literal -= math.fsum(s / sum(soft) * p for s, p in zip(soft, log_now, strict=True)) / 3
    assert float(distillation(logits, old, 2.0)) == pytest.approx(literal, rel=1e-12)


def test_lwf_remembers_the_served_models_answers_on_the_new_samples():
    answers: dict[int, torch.Tensor] = {}
    learner = LoraLearner(setup(), seen := Seen(rule := LwF()))
    learner.learn(task(0))
    head = learner.head
    served = (
        learner.model.backbone(**task(1).inputs.batch(np.arange(40))) @ head.weight.T + head.bias
    )
    seen.on_end = lambda round: answers.update({round.session: rule.old})
    learner.learn(task(1))
    torch.testing.assert_close(answers[2], served.detach(), rtol=1e-4, atol=1e-5)
    assert seen.losses[0] == [0.0] * len(seen.losses[0])  # nothing is old in the first session
    assert min(seen.losses[1]) > 0
    assert learner.kept_bytes == 0


def test_averaging_deploys_the_mean_of_all_updates():
    deltas: list[dict[str, torch.Tensor]] = []
    seen = Seen(average_rule())
    seen.on_end = lambda round: deltas.append(updates(round))
    learned(LoraLearner(setup(), seen))
    for name, merged in seen.merged[-1].items():
        mean = torch.stack([d[name] for d in deltas]).mean(0)
        torch.testing.assert_close(merged, mean, rtol=1e-5, atol=1e-7)


def test_full_fine_tuning_is_adamw_on_the_targets_weights():
    given = setup(epochs=2)
    learner = FineTuneLearner(given)
    data = task(0)
    learner.learn(data)
    # the same once more: plain torch, the loop's batches, its warm-up and cosine
    model = tiny_model().backbone
    weights = [p for n, p in model.model.named_parameters() if n in learner.names]
    assert len(weights) == 2  # those that adapters would be on
    generator = torch.Generator().manual_seed(1)
    head = torch.nn.Linear(32, 2)
    with torch.no_grad():
        head.weight.uniform_(-(32**-0.5), 32**-0.5, generator=generator)
        head.bias.zero_()
    trained = [*(w.requires_grad_(True) for w in weights), head.weight, head.bias]
    rate = given.config.train.rate * RATE_SHARE
    groups = [{"params": weights}, {"params": [head.weight, head.bias]}]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.0)
    batches = [b for e in range(2) for b in epoch_batches(data.inputs.lengths(), 16, 0, 1, e)]
    wanted = torch.tensor([("a", "b").index(name) for name in data.targets])
    for step, batch in enumerate(batches):
        warm = max(1, round(len(batches) * 0.1))
        after = 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, len(batches) - warm)))
        now = rate * ((step + 1) / warm if step < warm else after)
        optimizer.param_groups[0]["lr"] = now
        optimizer.param_groups[1]["lr"] = now / RATE_SHARE * given.config.train.head_rate
        optimizer.zero_grad()
        logits = head(model(**data.inputs.batch(batch)))
        F.cross_entropy(logits, wanted[torch.from_numpy(batch)]).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    for name, parameter in model.model.named_parameters():
        found = dict(learner.model.backbone.model.named_parameters())[name]
        torch.testing.assert_close(found, parameter, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(learner.head.weight, head.weight.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(learner.head.bias, head.bias.detach(), rtol=1e-5, atol=1e-6)
    assert learner.trained == sum(p.numel() for p in trained)
    assert average(learned(FineTuneLearner(setup(), "analytic"))) > 0.9
