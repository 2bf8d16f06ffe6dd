"""Heads in sessions: a linear head protected or not, balance, the ridge chosen, names as classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import ArrayInputs, TinyBackbone, blobs, tiny_model
from torch import nn

from edge_pslora.config import AdaptConfig, HeadConfig, LoraConfig, TrainConfig, sequential_preset
from edge_pslora.core.analytic_head import add_samples, empty_statistics, solve_head, with_labels
from edge_pslora.core.ridge_path import RIDGES
from edge_pslora.data.types import Samples
from edge_pslora.errors import BudgetError, UsageError
from edge_pslora.models.types import BaseHead, LoadedModel, ModelSource
from edge_pslora.training.features import extract_features
from edge_pslora.training.head import Head, cross_fit, extend_labels, refit, sample_weights
from edge_pslora.training.memory import Memory, first_memory
from edge_pslora.training.session import SessionData, SessionResult, run_session
from edge_pslora.training.targets import find_targets

FAST = AdaptConfig(
    lora=LoraConfig(rank=2, alpha=4.0),
    train=TrainConfig(learning_rate=5e-3, epochs=12, batch_size=16),
)
OLD, NEW = ("a", "b", "c"), ("d", "e")


def _sessions(config: AdaptConfig, *groups: tuple[str, ...]) -> tuple[LoadedModel, SessionResult]:
    model = tiny_model()
    base = {n: p.detach().clone() for n, p in model.backbone.model.named_parameters()}
    memory: Memory | None = None
    for seed, labels in enumerate(groups):
        rows, names = blobs(labels, seed=seed)
        if memory is None:
            targets = find_targets(model.backbone.model, config.lora.target_modules)
            memory = first_memory(model, targets, config, "classification")
        data = SessionData(ArrayInputs(rows), names)
        result = run_session(model, base.__getitem__, memory, data, config)
        memory = result.memory
    return model, result


def _accuracy(model: LoadedModel, head: Head, labels: tuple[str, ...]) -> float:
    rows, names = blobs(labels, seed=99)
    features = extract_features(model.backbone, ArrayInputs(rows), 32)
    best = (features @ head.weight.T + head.bias).argmax(1).numpy()
    return float(np.mean(np.array(head.labels)[best] == names))


def test_protected_rows_move_less_and_forget_less():
    kept, moved = [], []
    for protect in (True, False):
        config = replace(FAST, head=HeadConfig(kind="linear", protect=protect))
        _, first = _sessions(config, OLD)
        model, second = _sessions(config, OLD, NEW)
        head = second.memory.head
        kept.append(_accuracy(model, head, OLD))
        moved.append(float((head.weight[:3] - first.memory.head.weight).norm()))
        assert _accuracy(model, head, NEW) > 0.8
        assert (head.past is not None) == protect
    assert moved[0] < moved[1]
    assert kept[0] >= kept[1]


@pytest.mark.parametrize("came_with_the_model", [False, True])
def test_only_a_head_that_starts_from_nothing_has_a_rate_of_its_own(came_with_the_model: bool):
    rows, names = blobs(OLD, seed=0)
    found = []
    for rate in (1.0, 10.0):
        model = tiny_model()
        if came_with_the_model:
            model = replace(model, base_head=BaseHead(OLD, torch.ones(3, 32), torch.ones(3), "fc"))
        base = {n: p.detach().clone() for n, p in model.backbone.model.named_parameters()}
        train = replace(FAST.train, head_rate=rate)
        config = replace(FAST, train=train, head=HeadConfig(kind="linear"))
        targets = find_targets(model.backbone.model, config.lora.target_modules)
        memory = first_memory(model, targets, config, "classification")
        data = SessionData(ArrayInputs(rows), names)
        head = run_session(model, base.__getitem__, memory, data, config).memory.head
        found.append(head.weight - memory.head.weight if came_with_the_model else head.weight)
    assert torch.equal(*found) == came_with_the_model


def test_without_loss_and_merge_protection_changes_no_byte():
    found = []
    for protect in (True, False):
        config = sequential_preset()
        head = replace(config.head, protect=protect)
        config = replace(config, lora=FAST.lora, train=FAST.train, head=head)
        _, result = _sessions(config, OLD, NEW)
        found.append(result)
    protected, free = found
    assert protected.memory.head.past is None
    assert torch.equal(protected.memory.head.weight, free.memory.head.weight)
    assert torch.equal(protected.memory.head.bias, free.memory.head.bias)
    assert protected.log.task_loss == free.log.task_loss
    assert protected.log.penalty == free.log.penalty


def test_the_penalty_of_the_rows_is_logged():
    config = replace(FAST, head=HeadConfig(kind="linear"))
    free = replace(FAST, head=HeadConfig(kind="linear", protect=False))
    logs = [_sessions(c, OLD, NEW)[1].log for c in (config, free)]
    assert logs[0].task_loss[0] == logs[1].task_loss[0]
    assert logs[0].penalty[5] > logs[1].penalty[5]


def test_a_head_budget_that_is_too_small_is_refused_before_training():
    config = replace(FAST, budget=replace(FAST.budget, head_bytes=1100))
    with pytest.raises(BudgetError, match="--head-budget"):
        _sessions(config, OLD)
    _sessions(replace(config, head=HeadConfig(kind="linear")), OLD)


def test_the_ridge_is_chosen_unless_it_is_given():
    _, chosen = _sessions(replace(FAST, head=HeadConfig(kind="analytic")), OLD, NEW)
    assert chosen.memory.head.ridge in RIDGES
    _, given = _sessions(replace(FAST, head=HeadConfig(kind="analytic", ridge=0.02)), OLD)
    assert given.memory.head.ridge == 0.02


def test_what_the_session_alone_says_knows_nothing_of_the_past():
    """Each sample by a head solved literally on the session's other folds and nothing else."""
    analytic = replace(FAST, head=HeadConfig(kind="analytic", ridge=0.02))
    _, first = _sessions(analytic, OLD)
    assert first.unseen is not None
    assert first.unseen.alone is None
    rows, names = blobs(OLD, seed=5)
    found = []
    for earlier in (OLD, tuple(reversed(OLD))):  # what was learned before: names of other blobs
        model = tiny_model()
        base = {n: p.detach().clone() for n, p in model.backbone.model.named_parameters()}
        targets = find_targets(model.backbone.model, analytic.lora.target_modules)
        memory = first_memory(model, targets, analytic, "classification")
        features = extract_features(model.backbone, ArrayInputs(rows), 32)
        statistics = add_samples(
            with_labels(memory.head.statistics, OLD),
            features,
            F.one_hot(torch.tensor([earlier.index(name) for name in names]), len(OLD)),
        )
        head = replace(extend_labels(memory.head, OLD), statistics=statistics)
        data = SessionData(ArrayInputs(rows), names)
        unseen = run_session(
            model, base.__getitem__, replace(memory, head=head), data, analytic
        ).unseen
        assert unseen is not None
        assert unseen.alone is not None
        found.append(unseen.alone.logits)
        torch.testing.assert_close(unseen.alone.past.gram, statistics.gram)
        assert unseen.rows[unseen.alone.rows].tolist() == list(range(len(rows)))
    np.testing.assert_array_equal(*found)
    columns = F.one_hot(torch.tensor([OLD.index(name) for name in names]), len(OLD))
    fold = np.arange(len(rows)) % analytic.head.folds
    for k in range(analytic.head.folds):
        nothing = empty_statistics(features.shape[1], OLD)
        seen = add_samples(nothing, features[fold != k], columns[fold != k])
        weight, bias = solve_head(seen, 0.02)
        expected = features[fold == k] @ weight.T + bias
        scale = found[0][fold == k] / expected.numpy()
        np.testing.assert_allclose(scale, scale.flat[0], rtol=1e-3)


def _head(task_type: Any = "classification", labels: tuple[str, ...] = OLD) -> Head:
    size = len(labels)
    return Head(
        task_type, labels, torch.zeros(size, 4), torch.zeros(size), empty_statistics(4, labels)
    )


def test_balanced_classes_weigh_the_same_and_all_samples_as_many_as_they_are():
    positions = torch.tensor([0] * 6 + [1] * 3 + [2])
    balanced = HeadConfig(class_balance="session")
    weights = sample_weights(F.one_hot(positions, 3), _head(), balanced)
    assert weights is not None
    assert float(weights.sum()) == pytest.approx(10)
    for label in range(3):
        assert float(weights[positions == label].sum()) == pytest.approx(10 / 3)
    assert (
        sample_weights(F.one_hot(positions, 3), _head(), HeadConfig(class_balance="none")) is None
    )


def test_samples_with_several_labels_or_none_have_a_weight():
    columns = torch.tensor([[1, 0], [1, 0], [1, 1], [0, 0]])
    weights = sample_weights(
        columns, _head("multilabel", ("x", "y")), HeadConfig(class_balance="session")
    )
    assert weights is not None
    expected = torch.tensor([1 / 3, 1 / 3, (1 / 3 + 1) / 2, 1.0]).double()
    torch.testing.assert_close(weights, expected * 4 / expected.sum())


def test_balance_is_that_of_repeated_samples():
    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([0] * 6 + [1] * 3)
    config = HeadConfig(ridge=1e-2, class_balance="session")
    found = refit(_head(labels=("a", "b")), features, positions, config).statistics
    again = torch.cat([torch.arange(9), torch.arange(6, 9)])
    repeated = add_samples(
        empty_statistics(4, ("a", "b")), features[again], F.one_hot(positions[again], 2)
    )
    assert found is not None
    for solved, expected in zip(solve_head(found, 1e-2), solve_head(repeated, 1e-2), strict=True):
        torch.testing.assert_close(solved, expected, rtol=1e-4, atol=1e-5)


def test_rows_of_zeros_and_ones_train_an_analytic_head():
    features = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    columns = torch.stack([features[:, 0] > 0, features[:, 1] > 0], dim=1).float()
    head = _head("multilabel", ("x", "y"))
    config = HeadConfig(class_balance="session")
    folds = cross_fit(head, features, columns, config)
    fitted = refit(head, features, columns, config)
    assert folds.logits(features, torch.arange(60)).shape == (60, 2)
    scores = features @ fitted.weight.T + fitted.bias
    assert float(((scores > 0.5) == columns.bool()).float().mean()) > 0.85


class _Words(nn.Module):
    """Texts of up to four words, as positions in a vocabulary: the mean of their embeddings, changed."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.layer = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.embedding(x.long()).mean(1) + 0.1 * self.layer(self.embedding(x.long()).mean(1))


class _WordEncoder:
    input_names = ("x",)

    def encode(self, samples: Samples) -> ArrayInputs:
        ids = [[int(word) for word in (str(text).split() * 4)[:4]] for text in samples.inputs]
        return ArrayInputs(np.array(ids, dtype=np.float32).reshape(-1, 4))

    def from_arrays(self, arrays: dict[str, Any]) -> ArrayInputs:
        return ArrayInputs(arrays["x"])


def _text_model() -> LoadedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = _Words()
    backbone = TinyBackbone(module).eval().requires_grad_(False)
    return LoadedModel(backbone, _WordEncoder(), 16, ModelSource("factory", "text"))


def _texts(labels: tuple[int, ...], n: int = 40, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """The label's own word once, another of its two words twice, and noise."""
    rng = np.random.default_rng(seed)
    names = rng.choice(labels, n * len(labels))
    texts = [f"{k} {k + 10} {k + 10} {rng.integers(20, 40)}" for k in names]
    return texts, names.astype(str)


def test_names_are_classes_before_and_after_learning():
    model, config = _text_model(), replace(FAST, head=HeadConfig(kind="label-text"))
    base = {n: p.detach().clone() for n, p in model.backbone.model.named_parameters()}
    memory, results = None, []
    for seed, labels in enumerate(((0, 1, 2), (3, 4))):
        texts, names = _texts(labels, seed=seed)
        if memory is None:
            targets = find_targets(model.backbone.model, ("layer", "embedding"))
            config = replace(
                config, lora=replace(config.lora, target_modules=("layer", "embedding"))
            )
            memory = first_memory(model, targets, config, "classification")
        inputs = model.encoder.encode(Samples("text", "classification", texts, names))
        result = run_session(model, base.__getitem__, memory, SessionData(inputs, names), config)
        memory = result.memory
        results.append(result)
    head = memory.head
    assert head.kind == "label-text"
    assert head.labels == ("0", "1", "2", "3", "4")
    assert head.statistics is None
    # every word, old names included, through the weights that serve now
    names = model.encoder.encode(
        Samples("text", "classification", list(head.labels), np.array(head.labels))
    )
    unit = F.normalize(extract_features(model.backbone, names, 8))
    scale = head.weight.norm(dim=1)
    torch.testing.assert_close(scale, scale[0].expand(5))
    torch.testing.assert_close(head.weight / scale[0], unit)
    texts, wanted = _texts((0, 1, 2, 3, 4), seed=9)
    inputs = model.encoder.encode(Samples("text", "classification", texts, wanted))
    features = F.normalize(extract_features(model.backbone, inputs, 32))
    best = (features @ head.weight.T + head.bias).argmax(1).numpy()
    accuracy = float(np.mean(np.array(head.labels)[best] == wanted))
    assert all(0.2 < (r.zero_shot_accuracy or 0.0) <= 1 for r in results)
    assert accuracy > max(0.9, results[0].zero_shot_accuracy or 0.0)
    assert results[0].log.task_loss[-1] < results[0].log.task_loss[0]


def test_other_heads_have_no_zero_shot_accuracy():
    assert _sessions(FAST, OLD)[1].zero_shot_accuracy is None


def test_a_session_of_one_label_still_trains():
    model = _text_model()
    config = replace(FAST, head=HeadConfig(kind="label-text"))
    texts, names = _texts((0, 1))
    targets = find_targets(model.backbone.model, ("auto",))
    base = {n: p.detach().clone() for n, p in model.backbone.model.named_parameters()}
    memory = first_memory(model, targets, config, "classification")
    samples = Samples("text", "classification", texts, names)
    for chosen in (names != "", names == "0"):
        part = samples.take(np.flatnonzero(chosen).astype(np.int64))
        data = SessionData(model.encoder.encode(part), part.targets)
        result = run_session(model, base.__getitem__, memory, data, config)
        memory = result.memory
    assert result.log.steps > 0


def test_label_text_needs_texts_with_labels_and_an_encoder_without_a_classifier():
    config = replace(FAST, head=HeadConfig(kind="label-text"))
    for model, kind, found in (
        (tiny_model(), "classification", "table data for classification"),
        (_text_model(), "regression", "text data for regression"),
        (_text_model(), "multilabel", "text data for multilabel"),
    ):
        with pytest.raises(UsageError, match=f"label-text: expected texts .* found {found}"):
            first_memory(model, (), config, kind)
    base = BaseHead(("a", "b"), torch.zeros(2, 16), torch.zeros(2), "classifier")
    with pytest.raises(UsageError, match="an encoder without a classifier; found classifier"):
        first_memory(replace(_text_model(), base_head=base), (), config, "classification")
