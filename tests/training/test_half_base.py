"""Training through a base in bf16: close to float32, and the base is the same to the bit afterwards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import ArrayInputs, TinyBackbone, blobs, tiny_model
from torch import nn

from edge_pslora.config import AdaptConfig, EngineConfig, HeadConfig, LoraConfig, TrainConfig
from edge_pslora.errors import ModelError
from edge_pslora.training import precision, session
from edge_pslora.training.half_base import HALF, half_base
from edge_pslora.training.half_weights import halvable, halved, joined, split
from edge_pslora.training.inject import injected, new_adapters
from edge_pslora.training.memory import first_memory
from edge_pslora.training.placing import CPU
from edge_pslora.training.plan import plain_plan
from edge_pslora.training.session import SessionData, SessionResult, run_session
from edge_pslora.training.stepping import half_problem, settled, stepping
from edge_pslora.training.targets import find_targets


class Conv1D(nn.Module):
    """What transformers' GPT-2 has in the place of a Linear."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self, size: int, out: int) -> None:
        super().__init__()
        self.nf = out
        self.weight = nn.Parameter(torch.randn(size, out) * size**-0.5)
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).view(*x.shape[:-1], -1)


class Everything(nn.Module):
    """Pictures [N, 3, 8, 8] through every kind of layer that is treated in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.strided = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 16, 1, stride=2)
        self.position = nn.Parameter(torch.randn(4, 16))
        self.packed = nn.MultiheadAttention(16, 2, batch_first=True)
        self.query, self.value = nn.Linear(16, 16), nn.Linear(16, 16, bias=False)
        self.scale = nn.LayerNorm(16)
        self.wide = Conv1D(16, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pointwise(self.strided(self.norm(self.first(x)).relu())).relu()
        x = x.flatten(2).movedim(1, 2) + self.position
        x = x + self.packed(x, x, x, need_weights=False)[0]
        x = x + F.scaled_dot_product_attention(self.query(x), x, self.value(x))
        return self.wide(self.scale(x)).mean(1)


@pytest.fixture(scope="module")
def everything():
    torch.manual_seed(0)
    backbone = TinyBackbone(Everything()).eval().requires_grad_(False)
    names = ("first", "pointwise", "packed", "query", "value", "wide")
    targets = find_targets(backbone.model, names)
    assert {t.name for t in targets} == set(names)
    adapters = new_adapters(targets, 2, 2.0, torch.Generator().manual_seed(0))
    for adapter in adapters.values():
        adapter.B.data.normal_(0, 0.1)
    return backbone, adapters, {"x": torch.randn(6, 3, 8, 8)}


def _gradients(backbone, adapters, x):
    for adapter in adapters.values():
        adapter.A.grad = adapter.B.grad = None
    features = backbone(**x)
    assert features.dtype == torch.float32
    (features.square().sum() / 10).backward()
    grads = {n: (a.A.grad.clone(), a.B.grad.clone()) for n, a in adapters.items()}
    return features.detach(), grads


def test_halves_are_joined_to_the_bit_whatever_they_were():
    bits = np.random.default_rng(0).integers(-(2**31), 2**31, 200_000, dtype=np.int64)
    ties = (bits & ~0xFFFF) | 0x8000
    near = np.concatenate([(bits & ~0xFFFF) | low for low in (0, 1, 0x7FFF, 0x8001, 0xFFFF)])
    values = np.concatenate([bits, ties, near]).astype(np.int64).astype(np.int32).view(np.float32)
    weight = torch.from_numpy(values[np.isfinite(values)].copy())
    upper, low = split(weight)
    assert upper.dtype == HALF
    assert low.nbytes + upper.nbytes == weight.nbytes
    assert torch.equal(joined(upper, low).view(torch.int32), weight.view(torch.int32))
    finite = upper.isfinite()
    error = (upper[finite].double() - weight[finite].double()).abs()
    nearest = (weight[finite].to(HALF).double() - weight[finite].double()).abs()
    assert torch.equal(error, nearest)


def test_features_and_gradients_are_those_of_float32_within_bf16(everything):
    backbone, adapters, x = everything
    with injected(backbone.model, adapters):
        features, expected = _gradients(backbone, adapters, x)
    with half_base(backbone, adapters):
        half_features, found = _gradients(backbone, adapters, x)
    assert float((half_features - features).norm() / features.norm()) < 0.02
    for name, pair in expected.items():
        for part, gradient in zip(found[name], pair, strict=True):
            assert float((part - gradient).norm() / gradient.norm()) < 0.15, name
    # and it was not float32 all along
    assert not torch.equal(half_features, features)


def test_the_base_is_the_same_afterwards_to_the_bit(everything):
    backbone, adapters, x = everything
    before = {n: v.clone() for n, v in backbone.model.state_dict().items()}
    identities = {n: id(p) for n, p in backbone.model.named_parameters()}
    with torch.no_grad():
        features = backbone(**x)

    def interrupted() -> None:
        with half_base(backbone, adapters):
            assert backbone.model.query.weight.dtype == HALF
            assert backbone.model.norm.weight.dtype == torch.float32
            backbone(**x)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    after = backbone.model.state_dict()
    assert list(after) == list(before)
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        assert torch.equal(after[name], value), name
    assert {n: id(p) for n, p in backbone.model.named_parameters()} == identities
    assert not any("forward" in m.__dict__ for m in backbone.modules())
    with torch.no_grad():
        assert torch.equal(backbone(**x), features)


def test_trained_and_shared_weights_are_left_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4))
    model.requires_grad_(False)
    model[2].weight = nn.Parameter(model[0].weight.detach(), requires_grad=False)  # same memory
    model[3].weight.requires_grad_(True)
    found = {id(p) for p in halvable(model)}
    assert {n for n, p in model.named_parameters() if id(p) in found} == {
        "0.bias",
        "2.bias",
        "3.bias",
    }
    tied = nn.Linear(4, 4).requires_grad_(False)
    tied.again = nn.Linear(4, 4)
    tied.again.weight = tied.weight  # one parameter under two names stays one
    with halved(halvable(tied)):
        assert tied.again.weight is tied.weight
        assert tied.weight.dtype == HALF


def _session(plan_changes, config=None, model=None, memory=None, **more) -> SessionResult:
    model, config = model or tiny_model(), config or CONFIG
    base = {n: p.detach().clone() for n, p in model.backbone.model.named_parameters()}
    rows, names = blobs(("a", "b", "c"))
    names[::5] = np.roll(names[::5], 1)  # or there would be no loss that could differ
    targets = find_targets(model.backbone.model, config.lora.target_modules)
    return run_session(
        model,
        base.__getitem__,
        memory or first_memory(model, targets, config, "classification"),
        SessionData(ArrayInputs(rows), names),
        config,
        plan=replace(plain_plan(config), **plan_changes),
        **more,
    )


CONFIG = AdaptConfig(
    lora=LoraConfig(rank=2, alpha=4.0),
    train=TrainConfig(learning_rate=5e-3, epochs=3, batch_size=16, checkpoint_every=3),
)


def test_a_session_in_bf16_learns_the_same_and_ships_what_it_computed():
    plain, half = _session({}, CONFIG), _session({"precision": "bf16"}, CONFIG)
    assert half.log.notes == plain.log.notes == []
    assert half.log.task_loss != plain.log.task_loss
    assert half.log.task_loss[-1] == pytest.approx(plain.log.task_loss[-1], rel=0.1, abs=0.02)
    assert half.merge_error < 1e-5  # in float32: the weights came back
    assert all(a.A.dtype == torch.float32 for a in half.adapters.values())


class Refuses(nn.Linear):
    """A layer that was written with float32 in mind."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.weight.dtype != torch.float32:
            raise RuntimeError("expected Float but found BFloat16\nand more")
        return super().forward(x)


class Fragile(nn.Linear):
    """Takes the difference of what is nearly equal."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return ((y + 1000) - 1000).float()


@pytest.mark.parametrize(
    ("layer", "said"), [(Refuses, "expected Float but found BFloat16"), (Fragile, "would differ")]
)
def test_a_model_that_bf16_does_not_suit_is_trained_in_float32_and_it_is_said(layer, said):
    model = tiny_model()
    model.backbone.model[2] = layer(32, 32).requires_grad_(False)
    targets = find_targets(model.backbone.model, ("0",))
    adapters = new_adapters(targets, 2, 2.0, torch.Generator().manual_seed(0))
    x = {"x": torch.randn(4, 6)}
    assert said in half_problem(model.backbone, adapters, x)
    plan = replace(plain_plan(CONFIG), precision="bf16")
    found, notes = settled(model.backbone, adapters, plan, x)
    assert found == replace(plan, precision="float32")
    assert said in notes[0]
    with stepping(model.backbone, adapters, found):
        assert model.backbone.model[0].weight.dtype == torch.float32
    with pytest.raises(ModelError, match="--precision bf16"):
        settled(model.backbone, adapters, plan, x, required=True)


def test_features_before_are_in_bf16_only_where_no_statistics_are_moved_by_them(monkeypatch):
    """What differs between the features before and after counts as drift, rounding too."""
    asked: list[bool] = []
    extract = session.extract_features

    def watched(backbone, *args):
        asked.append(backbone.model[0].weight.dtype == HALF)
        return extract(backbone, *args)

    monkeypatch.setattr(session, "extract_features", watched)
    model = tiny_model()
    first = _session({"precision": "bf16"}, model=model)
    _session({"precision": "bf16"}, model=model, memory=first.memory)
    apart = replace(CONFIG, head=HeadConfig(transport=False))
    _session({"precision": "bf16"}, apart, model=model, memory=first.memory)
    assert asked == [True, False, False, False, True, False]


def test_bf16_asked_for_by_name_is_required():
    config = replace(CONFIG, engine=EngineConfig(precision="bf16"))
    assert _session({"precision": "bf16"}, config).log.steps > 0


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16"])
def test_a_processor_with_bf16_products_is_known_by_its_flags(name, monkeypatch):
    monkeypatch.setattr(precision.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(precision.torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(precision.torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert not precision.has_bf16(CPU)
    monkeypatch.setattr(precision.torch.cpu, "get_capabilities", lambda: {name: True})
    assert precision.has_bf16(CPU)


def test_the_flags_of_an_arm_processor_are_read(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\nFeatures\t: other\n")
    assert precision._flags(file, "features") == {"fp", "asimd", "bf16"}
    assert precision._flags(tmp_path / "missing", "features") == frozenset()
