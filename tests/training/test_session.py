"""One session in memory: what it keeps, what it changes, and that a resumed one ends in the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ArrayInputs, TinyBackbone, blobs, tiny_model
from torch import nn

from edge_pslora.config import (
    AdaptConfig,
    BudgetConfig,
    HeadConfig,
    LoraConfig,
    StabilityConfig,
    TrainConfig,
    paper_preset,
    sequential_preset,
)
from edge_pslora.errors import BudgetError, EdgePsloraError, ModelError
from edge_pslora.models.types import LoadedModel
from edge_pslora.training.features import extract_features
from edge_pslora.training.memory import Memory, first_memory
from edge_pslora.training.session import (
    SessionData,
    SessionResult,
    run_session,
)
from edge_pslora.training.targets import find_targets

FAST = AdaptConfig(
    lora=LoraConfig(rank=2, alpha=4.0),
    train=TrainConfig(learning_rate=5e-3, epochs=4, batch_size=16, checkpoint_every=3),
)
Base = dict[str, torch.Tensor]


def _base(model: LoadedModel) -> Base:
    return {n: p.detach().clone() for n, p in model.backbone.model.named_parameters()}


def _session(
    model: LoadedModel,
    base: Base,
    memory: Memory | None,
    labels: tuple[str, ...],
    config: AdaptConfig = FAST,
    seed: int = 0,
    **more: Any,
) -> SessionResult:
    rows, names = blobs(labels, seed=seed)
    data = SessionData(ArrayInputs(rows), names)
    if memory is None:
        targets = find_targets(model.backbone.model, config.lora.target_modules)
        memory = first_memory(model, targets, config, "classification")
    return run_session(model, base.__getitem__, memory, data, config, **more)


def _accuracy(model: LoadedModel, memory: Memory, labels: tuple[str, ...]) -> float:
    rows, names = blobs(labels, seed=99)
    features = extract_features(model.backbone, ArrayInputs(rows), 32)
    scores = features @ memory.head.weight.T + memory.head.bias
    return float(np.mean(np.array(memory.head.labels)[scores.argmax(1).numpy()] == names))


def test_new_classes_are_learned_and_old_ones_kept():
    model = tiny_model()
    base = _base(model)
    memory = _session(model, base, None, ("a", "b", "c")).memory
    learned = _accuracy(model, memory, ("a", "b", "c"))
    memory = _session(model, base, memory, ("d", "e"), seed=1).memory
    assert memory.head.labels == ("a", "b", "c", "d", "e")
    assert memory.sessions == 2
    assert learned > 0.9
    assert _accuracy(model, memory, ("d", "e")) > 0.8
    assert _accuracy(model, memory, ("a", "b", "c")) > learned - 0.1


def test_sequential_lora_forgets_on_the_same_data():
    """The harness must be able to see forgetting, or the test above proves nothing."""
    model = tiny_model()
    base = _base(model)
    config = replace(sequential_preset(), lora=FAST.lora, train=replace(FAST.train, epochs=20))
    memory = _session(model, base, None, ("a", "b", "c"), config).memory
    learned = _accuracy(model, memory, ("a", "b", "c"))
    memory = _session(model, base, memory, ("d", "e"), config, seed=1).memory
    assert _accuracy(model, memory, ("a", "b", "c")) < learned - 0.3


def test_the_first_merge_is_the_update_itself_under_every_rule():
    for rule in ("max_magnitude", "cumulative", "constructive", "average", "none"):
        model = tiny_model()
        base = _base(model)
        result = _session(model, base, None, ("a", "b"), replace(FAST, merge=rule))
        for name, adapter in result.adapters.items():
            weight = model.backbone.model.get_submodule(name).weight
            torch.testing.assert_close(
                weight, base[f"{name}.weight"] + adapter.delta(), rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize("rule", ["max_magnitude", "constructive", "average", "none", "cumulative"])
def test_the_second_merge_follows_its_rule(rule):
    model = tiny_model()
    base = _base(model)
    config = replace(FAST, merge=rule)
    first = _session(model, base, None, ("a", "b"), config)
    old = {n: a.delta() for n, a in first.adapters.items()}
    second = _session(model, base, first.memory, ("c", "d"), config, seed=1)
    for name, adapter in second.adapters.items():
        M, D = old[name], adapter.delta()
        expected = {
            "max_magnitude": torch.where(D.abs() > M.abs(), D, M),
            "cumulative": torch.where((M + D).abs() > M.abs(), M + D, M),
            "constructive": torch.where((M + D).abs() >= M.abs(), M + D, M),
            "average": (M + D) / 2,
            "none": M + D,
        }[rule]
        found = model.backbone.model.get_submodule(name).weight - base[f"{name}.weight"]
        # an entry where two candidates tie may go either way in float32
        share = float(((found - expected).abs() < 1e-5).float().mean())
        assert share > 0.98, f"{name}: {share}"


def test_the_history_is_the_sum_of_the_updates():
    model = tiny_model()
    base = _base(model)
    first = _session(model, base, None, ("a", "b"))
    second = _session(model, base, first.memory, ("c", "d"), seed=1)
    for name, layer in second.memory.history.items():
        total = first.adapters[name].delta() + second.adapters[name].delta()
        torch.testing.assert_close(layer.dense(), total, rtol=1e-3, atol=1e-5)


def test_untouched_weights_stay_bit_for_bit():
    model = tiny_model()
    base = _base(model)
    result = _session(model, base, None, ("a", "b"))
    changed = {a.target.weight_name for a in result.adapters.values()}
    for name, parameter in model.backbone.model.named_parameters():
        assert torch.equal(parameter, base[name]) == (name not in changed)
        assert not parameter.requires_grad


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not():
    def run(seed: int) -> torch.Tensor:
        model = tiny_model()
        config = replace(FAST, train=replace(FAST.train, seed=seed))
        return next(
            iter(_session(model, _base(model), None, ("a", "b"), config).adapters.values())
        ).B

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


class MemoryStore:
    """A checkpoint store that forgets to be killed."""

    def __init__(self) -> None:
        self.saved: tuple[dict[str, Any], dict[str, Any]] | None = None

    def load(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        return self.saved

    def save(self, arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        self.saved = ({n: a.copy() for n, a in arrays.items()}, dict(meta))


@pytest.mark.parametrize("preset", ["default", "paper", "linear"])
@pytest.mark.parametrize("killed_after", [1, 4, 7, 11])
def test_a_resumed_session_ends_in_the_same_bytes(killed_after, preset):
    config = (
        replace(paper_preset(), lora=FAST.lora, train=FAST.train)
        if preset == "paper"
        else replace(FAST, head=HeadConfig(kind="linear" if preset == "linear" else "auto"))
    )

    class KilledError(Exception):
        pass

    def run(store: MemoryStore | None, stop: Any = lambda: "") -> SessionResult:
        model = tiny_model()
        base = _base(model)
        first = _session(model, base, None, ("a", "b"), config)
        return _session(
            model, base, first.memory, ("c", "d"), config, seed=1, store=store, stop=stop
        )

    expected = run(None)
    store, calls = MemoryStore(), iter(range(1000))

    def kill() -> str:
        if next(calls) == killed_after:
            raise KilledError
        return ""

    with pytest.raises(KilledError):
        run(store, kill)
    resumed = run(store)
    assert resumed.log.task_loss == expected.log.task_loss
    assert resumed.log.penalty == expected.log.penalty
    assert (resumed.log.resumed_at > 0) == (killed_after >= 3)
    for name, adapter in expected.adapters.items():
        assert torch.equal(resumed.adapters[name].A, adapter.A)
        assert torch.equal(resumed.adapters[name].B, adapter.B)
    assert torch.equal(resumed.memory.head.weight, expected.memory.head.weight)


def test_a_stop_ends_training_at_a_step_and_keeps_what_was_learned():
    model = tiny_model()
    calls = iter(range(100))
    result = _session(
        model,
        _base(model),
        None,
        ("a", "b"),
        stop=lambda: "time budget" if next(calls) >= 2 else "",
    )
    assert result.log.steps == 2
    assert result.log.stop_reason == "time budget"
    assert _accuracy(model, result.memory, ("a", "b")) > 0.8


def test_the_stability_loss_holds_the_update_back():
    norms = []
    for weight in (0.0, 100.0):
        model = tiny_model()
        base = _base(model)
        config = replace(FAST, stability=StabilityConfig(weight=weight, most_pull=None))
        first = _session(model, base, None, ("a", "b"))
        second = _session(model, base, first.memory, ("c", "d"), config, seed=1)
        norms.append(sum(float(a.delta().norm()) for a in second.adapters.values()))
    assert norms[1] < 0.5 * norms[0]


def test_a_target_without_gradient_is_named():
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(6, 32), nn.Linear(6, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.used(x)) + 0 * self.unused(x)

    model = replace(tiny_model(), backbone=TinyBackbone(Dead()).eval().requires_grad_(False))
    config = replace(FAST, lora=replace(FAST.lora, target_modules=("used", "unused")))
    with pytest.raises(ModelError, match=r"target unused: expected a gradient"):
        _session(model, _base(model), None, ("a", "b"), config)


def test_a_loss_that_stays_not_finite_ends_the_session():
    class Overflowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.layer(x)
            # finite while nothing is trained, as a model that only breaks down in training
            return out * float("inf") if torch.is_grad_enabled() else out

    model = replace(tiny_model(), backbone=TinyBackbone(Overflowing()).eval().requires_grad_(False))
    config = replace(FAST, lora=replace(FAST.lora, target_modules=("layer",)))
    with pytest.raises(EdgePsloraError, match="non-finite loss"):
        _session(model, _base(model), None, ("a", "b"), config)


def test_a_history_budget_that_is_too_small_is_refused_before_training():
    model = tiny_model()
    base = _base(model)
    config = replace(FAST, budget=BudgetConfig(history_bytes=10))
    with pytest.raises(BudgetError, match="--history-budget"):
        _session(model, base, None, ("a", "b"), config)
    assert all(torch.equal(p, base[n]) for n, p in model.backbone.model.named_parameters())


def test_regression_learns_and_remembers():
    model = tiny_model()
    base = _base(model)
    rng = np.random.default_rng(0)
    weights = rng.normal(size=6)

    def data(shift: float) -> tuple[np.ndarray, np.ndarray]:
        rows = (rng.normal(size=(150, 6)) + shift).astype(np.float32)
        return rows, (rows @ weights * 10 + 100).astype(np.float32)

    config = replace(FAST, head=HeadConfig(ridge=1e-3))
    first, second = data(0.0), data(3.0)
    targets = find_targets(model.backbone.model, ("auto",))
    memory = first_memory(model, targets, config, "regression")
    for rows, values in (first, second):
        result = run_session(
            model, base.__getitem__, memory, SessionData(ArrayInputs(rows), values), config
        )
        memory = result.memory
    for rows, values in (first, second):
        features = extract_features(model.backbone, ArrayInputs(rows), 32)
        predicted = (features @ memory.head.weight.T + memory.head.bias)[:, 0].numpy()
        assert 1 - np.mean((predicted - values) ** 2) / np.var(values) > 0.8


def test_norms_are_trained_on_request_only():
    def run(train_norms: bool) -> bool:
        module = nn.Sequential(nn.Linear(6, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 32))
        model = replace(tiny_model(), backbone=TinyBackbone(module).eval().requires_grad_(False))
        before = module[1].weight.clone()
        config = replace(FAST, train=replace(FAST.train, train_norms=train_norms))
        _session(model, _base(model), None, ("a", "b"), config)
        return not torch.equal(module[1].weight, before)

    assert run(True)
    assert not run(False)
