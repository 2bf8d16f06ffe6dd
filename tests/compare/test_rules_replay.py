"""The reservoir, replay, DER++ and what is joined to PS-LoRA."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edge_pslora.compare.rule import PlainRule
from edge_pslora.compare.rules.replay import Joined, Replay, dark_loss
from edge_pslora.compare.rules.reservoir import Kept, Take, draw_slots, offered, shared, stacked
from edge_pslora.compare.trainer import LoraLearner
from tests.compare.rules_kit import TASKS, average, learned, setup, task, watched


def _from(first: int) -> Take:
    """Samples numbered from `first` on."""

    def take(rows: np.ndarray) -> Kept:
        return Kept({"x": (first + rows).astype(np.float32)[:, None]}, (first + rows).astype(str))

    return take


def test_every_sample_of_a_stream_is_kept_with_the_same_chance():
    """Vitter's algorithm R: K / n each, in whatever parts the stream comes."""
    counts, runs = np.zeros(30), 800
    for seed in range(runs):
        draws = np.random.Generator(np.random.PCG64([seed]))
        kept = None
        for first, count in ((0, 4), (4, 16), (20, 10)):  # the first part does not fill it
            kept = offered(kept, _from(first), count, 6, draws)
        assert len(kept) == 6
        assert kept.seen == 30
        counts[kept.targets.astype(int)] += 1
        assert (kept.inputs["x"][:, 0].astype(int) == kept.targets.astype(int)).all()
    expected = runs * 6 / 30
    deviation = (expected * (1 - 6 / 30)) ** 0.5
    assert np.abs(counts - expected).max() < 4 * deviation


def test_slots_are_those_of_the_textbook():
    draws, again = (np.random.Generator(np.random.PCG64([5])) for _ in range(2))
    literal: list[int | None] = [None] * 3
    for number in range(1, 12):  # the number-th sample of the stream
        if number <= 3:
            literal[number - 1] = number - 1
        elif (slot := int(again.integers(0, number))) < 3:
            literal[slot] = number - 1
    slots = draw_slots(3, 0, 11, draws)
    assert [slots[k] for k in range(3)] == literal


def test_a_share_of_each_session_is_kept_for_good():
    kept = shared(None, _from(0), 100, 0.05)
    kept = shared(kept, _from(100), 10, 0.05)
    assert kept.targets.tolist() == ["0", "1", "2", "3", "4", "100"]
    assert kept.seen == 110
    assert kept.nbytes == 6 * 4 + 6 * 4


def test_rows_of_different_length_are_filled_up():
    ids = stacked(np.ones((1, 2), np.int32), np.full((1, 3), 7, np.int32))
    assert ids.tolist() == [[1, 1, 0], [7, 7, 7]]
    logits = stacked(np.ones((1, 1), np.float32), np.ones((1, 2), np.float32))
    assert np.isnan(logits[0, 1])
    assert dark_loss(torch.tensor([[3.0, 9.0]]), torch.from_numpy(logits[:1])) == 4.0


def test_the_dark_loss_is_the_mean_square_of_logits():
    logits, stored = torch.randn(4, 5), torch.randn(4, 3)
    literal = sum(
        (float(logits[i, j]) - float(stored[i, j])) ** 2 for i in range(4) for j in range(3)
    )
    assert float(dark_loss(logits, stored)) == pytest.approx(literal / 12, rel=1e-5)


def test_der_adds_the_two_terms_of_its_equation():
    """Eq. 6 on one batch, with the samples that the rule draws."""
    rule = Replay(capacity=8, weight=0.5, dark=0.3)
    seen, learner = watched(rule, tasks=1)

    def check(round):
        stored = rule.replayed
        state = round.generator.get_state()
        step = type("OneStep", (), {"samples": torch.arange(4)})()
        found = float(rule.loss(round, step).detach())
        round.generator.set_state(state)
        first, second = (
            np.sort(torch.randperm(8, generator=round.generator)[:4].numpy()) for _ in range(2)
        )
        with torch.no_grad():
            _, logits = round.answer(stored.inputs.batch(first))
            labelled = torch.nn.functional.cross_entropy(logits, stored.wanted[first])
            _, logits = round.answer(stored.inputs.batch(second))
            old = torch.from_numpy(rule.kept.inputs["stored logits"])[second]
            dark = (logits[:, : old.shape[1]] - old).square().mean()
        round.generator.set_state(state)
        assert found == pytest.approx(float(0.5 * labelled + 0.3 * dark), rel=1e-5)
        checked.append(True)

    checked = []
    seen.on_begin = check
    learner.learn(task(1))
    assert checked == [True]


def test_a_small_memory_weighs_as_its_samples_do():
    """New and stored samples together have the gradient of the mean over both, but for a factor."""
    rule = Replay(capacity=3)
    seen, learner = watched(rule, tasks=1)
    checked = []

    def check(round):
        step = type("OneStep", (), {"samples": torch.arange(12)})()
        with torch.no_grad():
            found = float(rule.loss(round, step))
            _, logits = round.answer(rule.replayed.inputs.batch(np.arange(3)))
            stored = torch.nn.functional.cross_entropy(logits, rule.replayed.wanted)
        assert found == pytest.approx(3 / 12 * float(stored), rel=1e-5)
        checked.append(True)

    seen.on_begin = check
    learner.learn(task(1))
    assert checked == [True]


def test_stored_logits_are_what_the_model_said_when_its_session_ended():
    rule = Replay(capacity=100, dark=0.3)
    seen, learner = watched(rule, tasks=1)
    data = task(0)
    stored = rule.kept
    assert sorted(stored.inputs["x"].ravel()) == sorted(data.inputs.rows.ravel())
    with torch.no_grad():
        _, logits = seen.rounds[0].answer({"x": torch.from_numpy(stored.inputs["x"])})
    # the sum of updates is deployed, and the head is the one that was trained
    torch.testing.assert_close(
        torch.from_numpy(stored.inputs["stored logits"]), logits, atol=1e-4, rtol=1e-3
    )
    assert learner.kept_bytes == 40 * (6 * 4 + 2 * 4 + 4)


def test_replay_forgets_less_than_sequential_training():
    replay = average(learned(LoraLearner(setup(), Replay(capacity=60))))
    plain = average(learned(LoraLearner(setup(), PlainRule())))
    assert replay > plain + 0.1


def test_labels_of_stored_samples_are_theirs():
    rule = Replay(capacity=1000)
    watched(rule, tasks=2)
    both = [task(k) for k in range(2)]
    known = {
        tuple(row): name
        for data in both
        for row, name in zip(data.inputs.rows.tolist(), data.targets, strict=True)
    }
    assert len(rule.kept) == 80
    assert all(
        known[tuple(row)] == name
        for row, name in zip(rule.kept.inputs["x"].tolist(), rule.kept.targets, strict=True)
    )
    assert set(rule.kept.targets) == set(TASKS[0]) | set(TASKS[1])


def test_joined_rules_add_their_losses_and_merge_as_the_first():
    one = PlainRule(
        loss=lambda r, s: torch.tensor(1.0), end=lambda r: {"a": torch.ones(1)}, kept_bytes=3
    )
    two = PlainRule(
        loss=lambda r, s: torch.tensor(2.0), end=lambda r: {"a": torch.zeros(1)}, kept_bytes=4
    )
    both = Joined(one, two)
    assert float(both.loss(None, None)) == 3.0
    assert bool(both.end(None)["a"])
    assert both.kept_bytes == 7
    assert Joined(PlainRule(), PlainRule()).loss(None, None) is None
