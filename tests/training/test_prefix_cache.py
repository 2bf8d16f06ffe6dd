"""The frozen part of a model runs once: the same adapter to the byte, and never a wrong row."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import ArrayInputs, TinyBackbone, blobs, tiny_model
from torch import nn

from edge_pslora.config import (
    AdaptConfig,
    EngineConfig,
    HeadConfig,
    LoraConfig,
    StabilityConfig,
    TrainConfig,
)
from edge_pslora.models.types import LoadedModel
from edge_pslora.training.half_base import half_base
from edge_pslora.training.memory import first_memory
from edge_pslora.training.plan import UsedPrefix, plain_plan
from edge_pslora.training.prefix_cache import PrefixCache, cache_bytes
from edge_pslora.training.prefix_cut import Cut, NoCut, find_cut, holds_in_half
from edge_pslora.training.prefix_rows import FORMS, decode, encode, row_bytes
from edge_pslora.training.session import SessionData, SessionResult, run_session
from edge_pslora.training.targets import adapted_targets

UPPER = AdaptConfig(
    lora=LoraConfig(rank=2, alpha=4.0),
    stability=StabilityConfig(most_pull=None),
    train=TrainConfig(learning_rate=5e-3, epochs=3, batch_size=16),
    engine=EngineConfig(adapt_depth=0.3),
)
LABELS = ("a", "b", "c")
LINEAR = replace(UPPER, head=HeadConfig(kind="linear"))


@dataclass
class Rows:
    """A RowStore in memory."""

    data: bytearray = field(default_factory=bytearray)
    tag: str | None = None
    full_at: int = 1 << 40

    def finished(self) -> str | None:
        return self.tag

    def write(self, offset: int, data: bytes) -> None:
        if offset + len(data) > self.full_at:
            raise OSError(28, "No space left on device")
        self.data.extend(bytes(max(0, offset + len(data) - len(self.data))))
        self.data[offset : offset + len(data)] = data

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.data[offset : offset + size])

    def finish(self, tag: str) -> None:
        self.tag = tag


@dataclass
class Counter:
    """How often a module computed."""

    samples: int = 0

    def watch(self, module: nn.Module) -> Counter:
        forward = module.forward

        def counted(x: torch.Tensor) -> torch.Tensor:
            self.samples += len(x)
            output: torch.Tensor = forward(x)
            return output

        object.__setattr__(module, "forward", counted)
        return self


def _inputs(samples: int = 40) -> tuple[ArrayInputs, np.ndarray]:
    rows, names = blobs(LABELS, n=samples)
    return ArrayInputs(rows), names


def _cut(model: LoadedModel, config: AdaptConfig = UPPER) -> Cut | NoCut:
    parameters = dict(model.backbone.model.named_parameters())
    targets = adapted_targets(model.backbone.model, config)
    trained = [parameters[t.weight_name] for t in targets]
    return find_cut(model.backbone, trained, _inputs()[0])


def _cache(model: LoadedModel, form: UsedPrefix = "exact", rows: Rows | None = None) -> PrefixCache:
    cut = _cut(model)
    assert isinstance(cut, Cut)
    return PrefixCache(cut, _inputs()[0].lengths(), form, rows or Rows())


def _session(
    model: LoadedModel,
    prefix: PrefixCache | None = None,
    config: AdaptConfig = UPPER,
    **more: Any,
) -> SessionResult:
    base = {n: p.detach().clone() for n, p in model.backbone.model.named_parameters()}
    targets = adapted_targets(model.backbone.model, config)
    memory = first_memory(model, targets, config, "classification")
    data = SessionData(*_inputs())
    return run_session(model, base.__getitem__, memory, data, config, prefix=prefix, **more)


def _bytes(result: SessionResult) -> bytes:
    """Of everything a session learns."""
    parts = [t.detach().numpy() for a in result.adapters.values() for t in (a.A, a.B)]
    head = result.memory.head
    return b"".join(p.tobytes() for p in [*parts, head.weight.numpy(), head.bias.numpy()])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("config", [UPPER, LINEAR], ids=["analytic", "linear"])
def test_an_exact_cache_gives_the_same_bytes_and_computes_the_lower_layers_once(config):
    plain = _session(tiny_model(), config=config)
    model = tiny_model()
    cache = _cache(model)
    lowest = Counter().watch(model.backbone.model[0])
    assert _bytes(_session(model, cache, config)) == _bytes(plain)
    # one call more for the eight samples of the merge's proof, before and after
    assert lowest.samples == len(_inputs()[0]) + 2 * 8
    assert cache.complete
    assert cache.note == ""


def _pictures(backbone_seed: int = 0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(backbone_seed)
        module = Pictures()
    backbone = TinyBackbone(module).eval().requires_grad_(False)
    rows = np.random.default_rng(0).normal(size=(9, 3, 8, 8)).astype(np.float32)
    return backbone, ArrayInputs(rows)


class Pictures(nn.Module):
    """[N, 3, 8, 8] through convolutions; `scale` is read below the cut beside all modules."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.wide = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.top = nn.Conv2d(8, 16, 1)
        self.scale: torch.Tensor = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.top(self.wide(self.low(x) * self.scale)).relu().mean((2, 3))


def test_what_the_model_does_between_skipped_modules_is_not_computed(monkeypatch):
    """Only what gave nothing but NaN of NaN; what looks at values, or at others too, computes."""
    backbone, inputs = _between()
    cut = find_cut(backbone, [backbone.model.top.weight], inputs)
    assert isinstance(cut, Cut)
    assert {call[0].__name__ for call in cut.idle} == {"relu6", "gelu"}
    batch, computed = inputs.batch(np.arange(9)), []
    monkeypatch.setattr(torch._C._nn, "relu6", lambda x: computed.append(x) or x.clamp(0, 6))
    with torch.no_grad():
        expected = backbone(**batch)
        assert len(computed) == 2
        cache = PrefixCache(cut, inputs.lengths(), "exact", Rows())
        for more in (2, 0, 0):  # the first pass keeps the rows
            computed.clear()
            with cache.during(backbone, np.arange(9)):
                assert torch.equal(backbone(**batch), expected)
            assert len(computed) == more


class Between(nn.Module):
    """Functions between modules, one of them of a kind that turns NaN into numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.next = nn.Linear(6, 8), nn.Linear(8, 8)
        self.wide, self.top = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(F.relu6(self.low(x)))
        x = torch.nan_to_num(F.relu6(self.next(x))) + 1
        return self.top(self.wide(x))


def _between():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = TinyBackbone(Between()).eval().requires_grad_(False)
    return backbone, ArrayInputs(np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32))


def test_steps_in_bf16_are_the_same_to_the_bit_with_kept_rows_and_without():
    backbone, inputs = _pictures()
    cut = find_cut(backbone, [backbone.model.top.weight], inputs)
    assert isinstance(cut, Cut)
    assert cut.boundary.call == ("wide", 0)
    assert holds_in_half(backbone, cut, inputs)
    batch = inputs.batch(np.arange(9))
    with torch.no_grad(), half_base(backbone, {}):
        everything = backbone(**batch)
    with torch.no_grad(), half_base(backbone, {}, cut.modules):
        upper = backbone(**batch)
        assert backbone.model.low[0].weight.dtype == torch.float32
        assert backbone.model.top.weight.dtype == torch.bfloat16
    assert not torch.equal(everything, upper)


def test_what_would_differ_in_bf16_is_seen():
    """A weight that is read beside all modules is rounded, and the kept rows know nothing of it."""
    backbone, inputs = _pictures()
    with torch.no_grad():
        backbone.model.scale.fill_(1.001)
    cut = find_cut(backbone, [backbone.model.top.weight], inputs)
    assert isinstance(cut, Cut)
    assert not holds_in_half(backbone, cut, inputs)


def test_a_session_in_bf16_gives_the_same_bytes_with_a_cache_and_without():
    plan = replace(plain_plan(UPPER), precision="bf16", cut=True)
    cut = _cut(tiny_model())
    assert isinstance(cut, Cut)
    plain = _session(tiny_model(), plan=plan, lower=cut.modules)
    model = tiny_model()
    cache = _cache(model)
    assert _bytes(_session(model, cache, plan=plan, lower=cut.modules)) == _bytes(plain)
    assert cache.complete
    assert _bytes(_session(tiny_model(), plan=plan)) != _bytes(plain)
    assert _bytes(_session(tiny_model())) != _bytes(plain)


@pytest.mark.parametrize("form", ["bf16", "int8"])
def test_smaller_forms_change_little(form):
    plain = _session(tiny_model())
    found = _session(model := tiny_model(), _cache(model, form))
    assert _bytes(found) != _bytes(plain)
    for name, adapter in plain.adapters.items():
        delta, other = adapter.delta(), found.adapters[name].delta()
        assert float((delta - other).norm() / delta.norm()) < 0.15
    # the head is solved on features of the full model, in float32
    assert torch.allclose(found.memory.head.weight, plain.memory.head.weight, atol=0.1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 2), (6,)])
def test_forms_keep_what_they_promise(form, shape):
    row = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 10
    row[0] = 0
    data = encode(form, row)
    assert len(data) == row_bytes(form, shape)
    error = (decode(form, data, shape).float() - row).abs()
    largest = (row.flatten(1) if row.dim() > 1 else row[None]).abs().amax(1)
    allowed = {
        "exact": torch.zeros_like(row),
        "bf16": row.abs() * 2**-8,
        "int8": (largest * (1.001 / 254)).reshape(-1, *[1] * (len(shape) - 1)).expand(shape),
    }
    assert bool((error <= allowed[form]).all())


def test_a_full_disk_costs_time_and_not_the_result():
    plain = _session(tiny_model())
    model = tiny_model()
    cache = _cache(model, rows=Rows(full_at=5000))
    result = _session(model, cache)
    assert _bytes(result) == _bytes(plain)
    assert not cache.complete
    assert any("No space left" in note for note in result.log.notes)


def test_a_row_that_changed_on_the_disk_is_noticed():
    plain = _session(tiny_model())
    model = tiny_model()
    rows = Rows()
    cache = _cache(model, rows=rows)
    cache.fill(model.backbone, _inputs()[0], 32, lambda n: None)
    rows.data[1000] ^= 1
    result = _session(model, cache)
    assert _bytes(result) == _bytes(plain)
    assert any("a row is not what was written" in note for note in result.log.notes)


def test_a_resumed_run_trusts_only_a_finished_table():
    rows = Rows()
    model = tiny_model()
    _cache(model, rows=rows).fill(model.backbone, _inputs()[0], 32, lambda n: None)
    assert _cache(model, rows=rows).complete
    rows.tag = "0" * 64
    assert not _cache(model, rows=rows).complete
    rows.tag = None
    assert not _cache(model, rows=rows).complete


def test_sizes_are_those_on_the_disk():
    for form in FORMS:
        rows, model = Rows(), tiny_model()
        cache = _cache(model, form, rows)
        cache.fill(model.backbone, _inputs()[0], 32, lambda n: None)
        assert len(rows.data) == cache_bytes(cache.cut, _inputs()[0].lengths(), form)


class _Around(nn.Module):
    """The lower layer is heard of above the cut too."""

    def __init__(self, how: str) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.low, self.mid, self.top = (nn.Linear(6, 6) for _ in range(3))
        self.norm = nn.BatchNorm1d(6, track_running_stats=False)
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = self.low(x)
        if self.how == "batch statistics":
            low = self.norm(low)
        if self.how == "dropout":
            low = nn.functional.dropout(low, 0.5)
        mid = self.mid(low)
        if self.how == "in place":
            low += 1
            return self.top(torch.relu_(mid)) + low.detach()
        return self.top(mid) + (low if self.how == "skip" else 0)


def _lowest_cut(how: str) -> Cut | NoCut:
    backbone = TinyBackbone(_Around(how)).eval().requires_grad_(False)
    return find_cut(backbone, [backbone.model.top.weight], _inputs()[0])


@pytest.mark.parametrize(
    ("how", "boundary"),
    [("", "mid"), ("skip", "low"), ("batch statistics", "low"), ("in place", "low")],
)
def test_the_cut_lies_where_one_result_is_all_that_goes_on(how, boundary):
    cut = _lowest_cut(how)
    assert isinstance(cut, Cut), cut
    assert cut.boundary.call == (boundary, 0)


def test_what_is_another_one_each_time_is_not_kept():
    assert isinstance(_lowest_cut("dropout"), NoCut)


def test_a_weight_that_is_read_below_moves_the_cut():
    """The lowest layer uses the uppermost one's weight: everything depends on what is trained."""
    backbone = TinyBackbone(_Around("")).eval().requires_grad_(False)
    backbone.model.low.weight = backbone.model.top.weight
    cut = find_cut(backbone, [backbone.model.top.weight], _inputs()[0])
    assert isinstance(cut, NoCut)


def test_depth_counts_blocks_from_the_top():
    model = tiny_model().backbone.model
    for depth, names in ((1.0, ("0", "2", "4")), (0.6, ("2", "4")), (0.3, ("4",))):
        config = AdaptConfig(
            lora=LoraConfig(target_modules=("*",)), engine=EngineConfig(adapt_depth=depth)
        )
        assert tuple(t.name for t in adapted_targets(model, config)) == names
