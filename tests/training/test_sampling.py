"""Robust training: samples that are watched, labels that are smoothed, classes that are drawn evenly."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import ArrayInputs, blobs, tiny_model
from torch import nn

from edge_pslora.config import AdaptConfig, LoraConfig, TrainConfig
from edge_pslora.errors import UsageError
from edge_pslora.tasks import TASKS
from edge_pslora.training import loop
from edge_pslora.training.batches import epoch_batches
from edge_pslora.training.memory import first_memory
from edge_pslora.training.plan import plain_plan
from edge_pslora.training.session import SessionData, run_session
from edge_pslora.training.session_loss import session_sampling
from edge_pslora.training.targets import find_targets
from edge_pslora.training.watching import PATIENCE, Watch, watched_samples

CONFIG = AdaptConfig(
    lora=LoraConfig(rank=2, alpha=4.0),
    train=TrainConfig(learning_rate=5e-3, epochs=3, batch_size=16),
)


def _session(train: TrainConfig, rows=None, names=None):
    config = replace(CONFIG, train=train)
    model = tiny_model()
    base = {n: p.detach().clone() for n, p in model.backbone.model.named_parameters()}
    if rows is None:
        rows, names = blobs(("a", "b", "c"))
    targets = find_targets(model.backbone.model, config.lora.target_modules)
    memory = first_memory(model, targets, config, "classification")
    return run_session(
        model, base.__getitem__, memory, SessionData(ArrayInputs(rows), names), config
    )


def test_classes_are_drawn_evenly_and_the_batches_depend_on_the_seed_alone():
    classes = np.array([0] * 70 + [1] * 25 + [2] * 5)
    lengths = np.ones(100, np.int64)
    drawn = [epoch_batches(lengths, 16, 3, 1, epoch, classes) for epoch in (0, 1)]
    for batches in drawn:
        counts = np.bincount(classes[np.concatenate(batches)])
        assert counts.sum() == 100
        assert counts.max() - counts.min() <= 1
        assert [len(b) for b in batches].count(16) == 6
    rare = np.concatenate(drawn[0])
    assert set(np.flatnonzero(classes == 2)) <= set(rare)  # all of a small class, before any again
    seen = np.concatenate([np.concatenate(b) for b in drawn])
    assert len(set(seen[classes[seen] == 0])) > 40  # of a large one others in each epoch
    again = epoch_batches(lengths, 16, 3, 1, 0, classes)
    assert all(np.array_equal(a, b) for a, b in zip(again, drawn[0], strict=True))


def test_watched_samples_are_not_learned_from(monkeypatch):
    batches = []
    real = loop.add_gradients

    def spy(compute, inputs, batch, *more):
        batches.append(batch)
        return real(compute, inputs, batch, *more)

    monkeypatch.setattr(loop, "add_gradients", spy)
    _session(replace(CONFIG.train, early_stop=True))
    watched = watched_samples(120)
    assert len(watched) == 12
    assert np.array_equal(np.unique(np.concatenate(batches)), np.setdiff1d(np.arange(120), watched))
    assert len(watched_samples(99)) == 0
    assert len(watched_samples(100_000)) == 500


def test_the_best_state_is_kept_and_training_ends():
    watch, parameter = Watch(), nn.Parameter(torch.zeros(2))
    for loss in (3.0, 1.0, math.nan, 2.0):
        assert not watch.over
        watch.add(loss, [parameter])
        with torch.no_grad():
            parameter += 1
    assert watch.over
    assert len(watch.losses) - watch.best_epoch == PATIENCE
    note = watch.finish([parameter])
    assert "epoch 2 of 4" in note
    assert parameter.tolist() == [1.0, 1.0]


def test_the_last_state_stays_where_it_is_the_best():
    watch, parameter = Watch(), nn.Parameter(torch.zeros(2))
    for loss in (3.0, 2.0):
        watch.add(loss, [parameter])
        with torch.no_grad():
            parameter += 1
    assert watch.finish([parameter]) == ""
    assert parameter.tolist() == [2.0, 2.0]


def test_a_rate_that_is_too_high_is_stopped_early():
    """Noise as labels: what helps on these samples does not on others."""
    rows, _ = blobs(("a", "b"), n=80)
    names = np.random.default_rng(0).permutation(np.array(["a", "b"] * 80))
    train = replace(CONFIG.train, epochs=12, learning_rate=0.05)
    plain = _session(train, rows, names)
    early = _session(replace(train, early_stop=True), rows, names)
    assert early.log.steps < plain.log.steps
    assert any("early stopping: the state after epoch" in note for note in early.log.notes)


def test_smoothed_labels_are_a_mixture():
    task = TASKS["classification"]
    logits, wanted = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    found = task.smoothed(0.2)(logits, wanted, {}, 1.0)
    target = 0.8 * torch.eye(4)[wanted] + 0.2 / 4
    torch.testing.assert_close(found, -(target * logits.log_softmax(1)).sum(1).mean())
    assert _session(replace(CONFIG.train, label_smoothing=0.3)).log.task_loss[-1] > 0.5


@pytest.mark.parametrize("change", [{"label_smoothing": 0.1}, {"balanced_sampling": True}])
def test_only_single_labels_are_smoothed_or_balanced(change):
    config = replace(CONFIG, train=replace(CONFIG.train, **change))
    inputs = ArrayInputs(np.zeros((4, 6), np.float32))
    for kind in ("regression", "multilabel", "language"):
        with pytest.raises(UsageError, match=r"--label-smoothing|--balanced-sampling"):
            session_sampling(TASKS[kind], inputs, torch.zeros(4, 1), config, plain_plan(config))
    with pytest.raises(UsageError, match="--label-smoothing"):
        TrainConfig(label_smoothing=1.0)
