"""One session of every kind of task on tiny models."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from edge_pslora.config import AdaptConfig, HeadConfig, StabilityConfig, TrainConfig
from edge_pslora.data.types import join_labels
from edge_pslora.errors import UsageError
from edge_pslora.models.types import Backbone, LoadedModel, ModelSource
from edge_pslora.tasks import TASKS
from edge_pslora.training.classifier import with_head
from edge_pslora.training.memory import Memory, first_memory
from edge_pslora.training.session import SessionData, run_session
from edge_pslora.training.targets import find_targets
from tests.tiny import ArrayInputs, RowEncoder, tiny_model

FAST = AdaptConfig(train=TrainConfig(epochs=4, learning_rate=5e-3))
VOCABULARY = 11


def _two_sessions(model, base, sessions, task_type, config):
    """Memory after each of the sessions."""
    targets = find_targets(model.backbone.model, config.lora.target_modules)
    memory = first_memory(model, targets, config, task_type)
    memories: list[Memory] = []
    for data in sessions:
        memory = run_session(model, base.__getitem__, memory, data, config).memory
        memories.append(memory)
    return memories


def _measured(model, memory, data) -> dict[str, float]:
    task = TASKS[memory.head.task_type]
    rows = np.arange(len(data.targets))
    inputs = data.inputs.batch(rows)
    with torch.no_grad():
        outputs = with_head(model.backbone, memory.head)(**inputs).numpy()
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    measures = task.measure(outputs, data.targets, arrays, memory.head.labels, 1.0)
    return task.figures(measures, data.targets, memory.head.target_scale)


def _tags(names: tuple[str, ...], seed: int) -> SessionData:
    """Each label is given where one column is above 0."""
    rows = np.random.default_rng(seed).normal(size=(300, 6)).astype(np.float32)
    columns = [rows[:, i] > 0 for i in range(len(names))]
    targets = [
        join_labels(n for n, column in zip(names, columns, strict=True) if column[i])
        for i in range(len(rows))
    ]
    return SessionData(ArrayInputs(rows), np.array(targets))


@pytest.mark.parametrize("kind", ["analytic", "linear"])
def test_multilabel_learns_and_its_label_set_grows(kind):
    model = tiny_model()
    base = {n: p.detach().clone() for n, p in model.backbone.model.named_parameters()}
    long = TrainConfig(epochs=30, learning_rate=1e-2)
    config = replace(FAST, head=HeadConfig(kind=kind), train=long)
    sessions = [_tags(("x", "y"), 1), _tags(("x", "y", "z"), 2)]
    first, second = _two_sessions(model, base, sessions, "multilabel", config)
    assert first.head.labels == ("x", "y")
    assert second.head.labels == ("x", "y", "z")
    assert _measured(model, second, _tags(("x", "y", "z"), 3))["accuracy"] > 0.75


class TinyLanguageModel(Backbone):
    """Token logits [N, T, V] from the token before: enough to learn a cycle of tokens."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        embedding = nn.Embedding(VOCABULARY, 16)
        nn.init.normal_(embedding.weight, generator=generator)
        out = nn.Linear(16, VOCABULARY, bias=False)
        nn.init.normal_(out.weight, std=0.1, generator=generator)
        mix = nn.Linear(16, 16)
        nn.init.eye_(mix.weight)
        nn.init.zeros_(mix.bias)
        self.model = nn.ModuleDict({"embed": embedding, "mix": mix, "out": out})

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.model["mix"](self.model["embed"](input_ids))
        logits: torch.Tensor = self.model["out"](torch.tanh(states))
        return logits


@dataclass(frozen=True)
class TokenInputs:
    ids: np.ndarray
    kept: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices):
        mask = np.arange(self.ids.shape[1]) < self.kept[indices][:, None]
        return {
            "input_ids": torch.from_numpy(self.ids[indices]),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }

    def lengths(self):
        return self.kept

    def to_arrays(self, indices):
        return {"input_ids": self.ids[indices], "kept": self.kept[indices]}


def _cycles(step: int, seed: int) -> SessionData:
    """Texts in which each token is the one before plus `step`."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, VOCABULARY, size=(120, 1))
    ids = (starts + step * np.arange(8)) % VOCABULARY
    return SessionData(TokenInputs(ids, rng.integers(4, 9, size=120)), np.array([""] * 120))


def _language_model() -> LoadedModel:
    backbone = TinyLanguageModel().eval().requires_grad_(False)
    return LoadedModel(backbone, RowEncoder(), VOCABULARY, ModelSource("huggingface", "text"))


def test_a_language_model_learns_by_its_own_output_layer():
    model = _language_model()
    base = {n: p.detach().clone() for n, p in model.backbone.model.named_parameters()}
    train = TrainConfig(epochs=30, learning_rate=1e-2)
    config = replace(FAST, train=train, stability=StabilityConfig(weight=0.0))
    held = _cycles(3, 9)
    targets = find_targets(model.backbone.model, ("auto",))
    memory = first_memory(model, targets, config, "language")
    before = _measured(model, memory, held)
    (after,) = _two_sessions(model, base, [_cycles(3, 1)], "language", config)
    assert after.head.labels == ()
    figures = _measured(model, after, held)
    assert figures["accuracy"] > 0.9 > before["accuracy"] + 0.5
    assert figures["perplexity"] < 0.5 * before["perplexity"]


def test_a_language_model_takes_no_other_head():
    model = _language_model()
    config = replace(FAST, head=HeadConfig(kind="analytic"))
    with pytest.raises(UsageError, match="language"):
        first_memory(model, (), config, "language")


def test_errors_count_in_the_spread_of_all_values_so_far():
    """One patient's values hardly vary: taken as the unit, they would drown the stability loss."""
    model = tiny_model()
    base = {n: p.detach().clone() for n, p in model.backbone.model.named_parameters()}
    rng = np.random.default_rng(0)
    sessions = []
    for level in (10.0, 40.0):
        rows = rng.normal(size=(60, 6)).astype(np.float32)
        values = (level + rng.normal(size=60)).astype(np.float32)
        sessions.append(SessionData(ArrayInputs(rows), values))
    memories = _two_sessions(model, base, sessions, "regression", FAST)
    seen = [sessions[0].targets, np.concatenate([s.targets for s in sessions])]
    for memory, values in zip(memories, seen, strict=True):
        assert memory.head.target_scale == pytest.approx(values.astype(np.float64).std(), rel=1e-6)
