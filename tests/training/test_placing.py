"""`--device`: what a session computes elsewhere is what it computes on the CPU, or it says why not.

What needs a GPU is skipped where torch sees none.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edge_pslora.config import (
    AdaptConfig,
    EngineConfig,
    HeadConfig,
    LoraConfig,
    StabilityConfig,
    TrainConfig,
)
from edge_pslora.errors import BudgetError, ModelError, NotEligibleError, UsageError
from edge_pslora.models.types import LoadedModel
from edge_pslora.tasks import TASKS
from edge_pslora.training import placing
from edge_pslora.training.half_base import half_base
from edge_pslora.training.memory import first_memory
from edge_pslora.training.placing import CPU, described_device, find_device, placed
from edge_pslora.training.plan import TrainingPlan, plain_plan
from edge_pslora.training.session import SessionData, SessionResult, run_session
from edge_pslora.training.targets import find_targets
from tests.tiny import ArrayInputs, TinyBackbone, blobs, tiny_model
from tests.training.test_session_tasks import TinyLanguageModel, TokenInputs

CUDA = torch.device("cuda:0")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
FAST = AdaptConfig(
    lora=LoraConfig(rank=2, alpha=4.0),
    head=HeadConfig(ridge=1e-2),  # a choice among candidates may fall otherwise by a rounding
    train=TrainConfig(learning_rate=5e-3, epochs=4, batch_size=16, checkpoint_every=3),
)
SAME = 1e-2  # of features and heads: sums in another order, over the steps of a session


def test_the_cpu_is_there_and_what_is_not_is_refused_with_what_is(monkeypatch):
    assert find_device("cpu") == CPU
    assert described_device(CPU) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert find_device("auto") == CPU
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(UsageError, match=r"--device.*found cpu ") as caught:
            find_device(name)
        assert caught.value.exit_code == 2
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert find_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto") == CUDA
    assert find_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UsageError, match=r"found cpu, cuda:0, cuda:1, mps "):
        find_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:-1", "meta", "cuda:0001", "CPU", "xla"])
def test_names_that_are_none_are_refused_with_the_settings(name):
    with pytest.raises(UsageError, match="--device"):
        EngineConfig(device=name)


def _probe() -> dict[str, torch.Tensor]:
    return {"x": torch.from_numpy(blobs(("a",), n=4)[0])}


def test_on_the_cpu_nothing_is_replaced():
    backbone = tiny_model().backbone
    with placed(backbone, CPU, _probe()):
        assert "forward" not in backbone.__dict__


def test_a_model_that_gives_no_numbers_elsewhere_is_refused():
    # torch's device without memory takes every model, and no number comes back from it
    backbone = tiny_model().backbone
    with pytest.raises(ModelError, match="--device meta") as caught, ExitStack() as stack:
        stack.enter_context(placed(backbone, torch.device("meta"), _probe()))
    assert "leave --device out" in str(caught.value)


def test_a_model_that_is_another_one_elsewhere_is_refused(monkeypatch):
    backbone = tiny_model().backbone

    def damaged(backbone: nn.Module, device: torch.device) -> None:
        with torch.no_grad():
            next(backbone.parameters()).mul_(1.01)

    monkeypatch.setattr(placing, "_move", damaged)
    monkeypatch.setattr(placing, "CPU", torch.device("cpu", 0))  # so that "cpu" is another one
    with pytest.raises(ModelError, match="differ by"), ExitStack() as stack:
        stack.enter_context(placed(backbone, torch.device("cpu"), _probe()))


def test_a_device_that_is_full_is_a_budget_that_is_not_met(monkeypatch):
    def full(backbone: nn.Module, device: torch.device) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")

    monkeypatch.setattr(placing, "_move", full)
    with pytest.raises(BudgetError, match=r"9\.00 GiB") as caught, ExitStack() as stack:
        stack.enter_context(placed(tiny_model().backbone, torch.device("meta"), _probe()))
    assert caught.value.exit_code == 6
    assert "--micro-batch" in str(caught.value)


class Conv(nn.Module):
    """Convolutions, a norm with running statistics, attention and a Linear: [N, 3, 8, 8] -> [N, 128]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16)
        self.norm = nn.BatchNorm2d(16)
        self.pointwise = nn.Conv2d(16, 128, 1)
        self.query = nn.Linear(128, 128)
        self.value = nn.Linear(128, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.depthwise(self.first(x))).relu()
        x = self.pointwise(x).flatten(2).transpose(1, 2)
        x = nn.functional.scaled_dot_product_attention(self.query(x), x, self.value(x))
        return x.mean(1)


def _pictures(seed: int = 0) -> SessionData:
    rng = np.random.default_rng(seed)
    names = np.array(["a", "b", "c"] * 32)
    rows = rng.normal(size=(96, 3, 8, 8)).astype(np.float32)
    rows[names == "b", 0] += 0.3  # hard enough that no loss comes near 0, where roundings decide
    rows[names == "c", 1] += 0.3
    return SessionData(ArrayInputs(rows), names)


def _conv_model() -> LoadedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Conv()
    backbone = TinyBackbone(module).eval().requires_grad_(False)
    return replace(tiny_model(), backbone=backbone, feature_size=128)


def _language() -> tuple[LoadedModel, SessionData]:
    rng = np.random.default_rng(1)
    ids = (rng.integers(0, 11, size=(96, 1)) + 3 * np.arange(8)) % 11
    data = SessionData(TokenInputs(ids, rng.integers(4, 9, size=96)), np.array([""] * 96))
    backbone = TinyLanguageModel().eval().requires_grad_(False)
    return replace(tiny_model(), backbone=backbone, feature_size=11), data


def _rows(labels: tuple[str, ...] = ("a", "b", "c"), seed: int = 0) -> SessionData:
    rows, names = blobs(labels, seed=seed)
    return SessionData(ArrayInputs(rows), names)


def _values() -> SessionData:
    rows = np.random.default_rng(0).normal(size=(96, 6)).astype(np.float32)
    return SessionData(ArrayInputs(rows), rows[:, 0] * 3 + 1)


def _sessions(
    device: torch.device,
    model: LoadedModel,
    data: tuple[SessionData, ...],
    config: AdaptConfig = FAST,
    task: str = "classification",
    plan: TrainingPlan | None = None,
    **more: Any,
) -> list[SessionResult]:
    """Sessions one after the other, the model on the device in each of them."""
    parameters: Mapping[str, torch.Tensor] = dict(model.backbone.model.named_parameters())
    base = {name: p.detach().clone() for name, p in parameters.items()}
    targets = find_targets(model.backbone.model, config.lora.target_modules)
    memory = first_memory(model, targets, config, task)
    results = []
    for session in data:
        probe = session.inputs.batch(np.arange(8))
        stays = not TASKS[task].has_head
        with placed(model.backbone, device, probe, stays=stays):
            result = run_session(
                model, base.__getitem__, memory, session, config, plan=plan, **more
            )
        memory = result.memory
        results.append(result)
    return results


def _require_alike(found: SessionResult, expected: SessionResult) -> None:
    assert found.log.steps == expected.log.steps
    assert all(a.A.device == a.B.device == CPU for a in found.adapters.values())
    one, other = found.memory.head.weight, expected.memory.head.weight
    assert one.device == CPU
    if other.numel():
        assert float((one - other).norm() / other.norm()) < SAME
    # the first losses; later ones hang on every rounding before them
    first, same = found.log.task_loss[:4], expected.log.task_loss[:4]
    assert first == pytest.approx(same, rel=1e-3)


def _require_same_outputs(found: LoadedModel, expected: LoadedModel, data: SessionData) -> None:
    x = data.inputs.batch(np.arange(len(data.inputs)))
    with torch.no_grad():
        one, other = found.backbone(**x), expected.backbone(**x)
    assert float((one - other).norm() / other.norm()) < SAME


KINDS = {
    "rows": (tiny_model, (_rows(), _rows(("d", "e"), 1)), FAST, "classification"),
    "linear head": (
        tiny_model,
        (_rows(), _rows(("d", "e"), 1)),
        replace(FAST, head=HeadConfig(kind="linear")),
        "classification",
    ),
    "pictures": (_conv_model, (_pictures(), _pictures(1)), FAST, "classification"),
    "values": (tiny_model, (_values(),), FAST, "regression"),
    "codes, cumulative, norms": (
        _conv_model,
        (_pictures(), _pictures(1)),
        replace(
            FAST,
            merge="cumulative",
            stability=StabilityConfig(history_cache="int8", row_stride=1),
            train=replace(FAST.train, train_norms=True, early_stop=True),
        ),
        "classification",
    ),
    "language": (lambda: _language()[0], (_language()[1],), FAST, "language"),
}


@needs_cuda
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [None, 5])
def test_cuda_learns_what_the_cpu_learns(kind, parts):
    make, data, config, task = KINDS[kind]
    plan = replace(plain_plan(config), micro_batch=parts or config.train.batch_size)
    there, model = make(), make()
    expected = _sessions(CPU, there, data, config, task, plan)
    found = _sessions(CUDA, model, data, config, task, plan)
    for one, other in zip(found, expected, strict=True):
        _require_alike(one, other)
    _require_same_outputs(model, there, data[-1])
    assert all(p.device == CPU for p in model.backbone.model.parameters())
    assert "forward" not in model.backbone.__dict__


@needs_cuda
def test_bf16_on_cuda_gives_the_base_back_and_features_of_its_digits():
    model = _conv_model()
    before = {n: v.clone() for n, v in model.backbone.model.state_dict().items()}
    x = _pictures().inputs.batch(np.arange(16))
    with torch.no_grad():
        expected = model.backbone(**x)
    with placed(model.backbone, CUDA, x), torch.no_grad(), half_base(model.backbone, {}):
        assert model.backbone.model.query.weight.dtype == torch.bfloat16
        found = model.backbone(**x)
    assert 1e-5 < float((found - expected).norm() / expected.norm()) < 0.02
    for name, value in before.items():
        assert torch.equal(model.backbone.model.state_dict()[name], value), name


@needs_cuda
@pytest.mark.parametrize("checkpointing", [False, True])
def test_bf16_on_cuda_learns(checkpointing):
    plan = TrainingPlan(16, 16, "bf16", checkpointing=checkpointing)
    (expected,) = _sessions(CPU, _conv_model(), (_pictures(),))
    (found,) = _sessions(CUDA, _conv_model(), (_pictures(),), plan=plan)
    assert not [note for note in found.log.notes if "float32" in note]
    assert found.log.task_loss[-1] == pytest.approx(expected.log.task_loss[-1], abs=0.1)


class Kept:
    """A CheckpointStore in memory."""

    def __init__(self) -> None:
        self.state: Any = None

    def load(self) -> Any:
        return self.state

    def save(self, arrays: Any, meta: Any) -> None:
        self.state = dict(arrays), dict(meta)


@needs_cuda
def test_a_session_that_was_stopped_on_cuda_goes_on_there():
    (expected,) = _sessions(CUDA, tiny_model(), (_rows(),))
    store, asked = Kept(), 0

    def stopped() -> None:
        nonlocal asked
        asked += 1
        if asked == 20:
            raise NotEligibleError("battery", expected="more", found="less", remedy="wait")

    with pytest.raises(NotEligibleError):
        _sessions(CUDA, tiny_model(), (_rows(),), store=store, check=stopped)
    assert store.state is not None
    (found,) = _sessions(CUDA, tiny_model(), (_rows(),), store=store)
    assert found.log.resumed_at > 0
    _require_alike(found, expected)


@needs_cuda
def test_a_batch_that_is_too_large_for_the_device_is_exit_code_6():
    class Greedy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.is_cuda and len(x) > 8:
                torch.empty(1 << 50, device=x.device)
            return self.linear(x)

    backbone = TinyBackbone(Greedy()).eval().requires_grad_(False)
    model = replace(tiny_model(), backbone=backbone)
    with pytest.raises(BudgetError, match="--device cuda:0"):
        _sessions(CUDA, model, (_rows(),))


@needs_cuda
def test_tensors_that_are_no_buffers_stay_behind_and_are_refused():
    class Loose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 32)
            self.scale = torch.ones(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x * self.scale)

    backbone = TinyBackbone(Loose()).eval().requires_grad_(False)
    with pytest.raises(ModelError, match="--device cuda:0"):
        _sessions(CUDA, replace(tiny_model(), backbone=backbone), (_rows(),))
