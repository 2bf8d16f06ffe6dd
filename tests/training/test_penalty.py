"""The stability loss in the loop: grouped, sampled and skipped as asked, and resumed to the byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ArrayInputs, tiny_model
from torch import nn

from edge_pslora.config import StabilityConfig, TrainConfig
from edge_pslora.core.stability import StabilityTarget, stability_target
from edge_pslora.training.collapse import collapse_note
from edge_pslora.training.inject import Adapter, injected, new_adapters
from edge_pslora.training.loop import LoopHooks, TrainLog, train
from edge_pslora.training.penalty import add_penalty, prepare_penalty, row_offset
from edge_pslora.training.targets import find_targets

EXACT = StabilityConfig(weight=0.3, row_stride=1, most_pull=None)
NAMES = ("0", "2", "4")  # [32, 6], [32, 32], [32, 32]


def _layers(ranks=(2, 0, 3), dtype=torch.float64, device="cpu"):
    """Three adapters, two of them of one shape, with zero gradients; and their targets."""
    g = torch.Generator().manual_seed(0)
    targets = find_targets(tiny_model().backbone.model, NAMES)
    drawn = new_adapters(targets, 2, 2.0, g)
    adapters, past = {}, {}
    for (name, adapter), rank in zip(drawn.items(), ranks, strict=True):
        A, B = adapter.A.detach().to(device, dtype), torch.randn(*adapter.B.shape, generator=g)
        A, B = nn.Parameter(A), nn.Parameter(B.to(device, dtype))
        A.grad, B.grad = torch.zeros_like(A), torch.zeros_like(B)
        adapters[name] = Adapter(adapter.target, A, B, adapter.scaling)
        out, size = adapter.target.shape
        left = torch.randn(out, rank, generator=g, dtype=torch.float64)
        right = torch.randn(rank, size, generator=g, dtype=torch.float64)
        past[name] = stability_target(left, right, base_rms=0.7)
    return adapters, past


def _expected(adapters, past: Mapping[str, StabilityTarget], config: StabilityConfig) -> float:
    """Mean over the layers of the reference's loss, times the weight; its gradients in place."""
    losses = [
        reference.stability_loss(
            a.A, a.B, a.scaling, past[n].left @ past[n].right, past[n].scale, 1.0, config.reading
        )
        for n, a in adapters.items()
    ]
    loss = config.weight * torch.stack(losses).mean()
    loss.backward()
    return float(loss.detach())


def _gradients(adapters: Mapping[str, Adapter]) -> list[torch.Tensor]:
    return [p.grad for a in adapters.values() for p in (a.A, a.B) if p.grad is not None]


@pytest.mark.parametrize("reading", ["elementwise", "product"])
@pytest.mark.parametrize("ranks", [(2, 0, 3), (0, 0, 0), (1, 4, 4)])
def test_it_adds_weight_times_the_mean_over_layers(reading, ranks):
    config = replace(EXACT, reading=reading)
    adapters, past = _layers(ranks)
    added = add_penalty(prepare_penalty(adapters, past, config, 0, 1), 0)
    assert added is not None
    others, _ = _layers(ranks)
    assert float(added.value) == pytest.approx(_expected(others, past, config), rel=1e-10)
    for found, wanted in zip(_gradients(adapters), _gradients(others), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-14)
    norm = torch.stack([g.norm() for g in _gradients(others)]).norm()
    assert float(added.norm) == pytest.approx(float(norm), rel=1e-5)


def test_layers_of_one_shape_are_one_group_ordered_by_rank():
    adapters, past = _layers((1, 2, 3))
    penalty = prepare_penalty(adapters, past, EXACT, 0, 1)
    assert [[a.target.name for a in g.adapters] for g in penalty.groups] == [["0"], ["4", "2"]]
    assert [g.stack.ranks for g in penalty.groups] == [(1,), (3, 2)]


def test_a_parameter_without_gradient_gets_none():
    adapters, past = _layers()
    first = next(iter(adapters.values()))
    first.A.grad = None
    add_penalty(prepare_penalty(adapters, past, EXACT, 0, 1), 0)
    assert first.A.grad is None
    assert bool(first.B.grad.any())


def test_every_k_th_step_counts_k_times():
    adapters, past = _layers()
    once = prepare_penalty(adapters, past, EXACT, 0, 1)
    value = float(add_penalty(once, 0).value)
    wanted = [g.clone() for g in _gradients(adapters)]
    for every in (1, 2, 3):
        others, _ = _layers()
        penalty = prepare_penalty(others, past, replace(EXACT, every=every), 0, 1)
        added = [add_penalty(penalty, position) for position in range(6)]
        assert [a is not None for a in added] == [p % every == 0 for p in range(6)]
        assert {float(a.value) for a in added if a is not None} == {value}
        for found, one in zip(_gradients(others), wanted, strict=True):
            torch.testing.assert_close(found, 6 * one, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("cache", ["none", "int8"])
def test_the_samples_of_one_round_make_the_whole(every, cache):
    """Over stride uses of the loss every row is seen once."""
    stride = 5
    exact = replace(EXACT, history_cache=cache)
    adapters, past = _layers()
    whole = float(add_penalty(prepare_penalty(adapters, past, exact, 0, 1), 0).value)
    wanted = [g.clone() for g in _gradients(adapters)]
    others, _ = _layers()
    config = replace(exact, row_stride=stride, every=every)
    penalty = prepare_penalty(others, past, config, 3, 1)
    added = [add_penalty(penalty, position) for position in range(stride * every)]
    values = [float(a.value) for a in added if a is not None]
    assert len(set(values)) == stride
    assert sum(values) / stride == pytest.approx(whole, rel=1e-10)
    for found, one in zip(_gradients(others), wanted, strict=True):
        torch.testing.assert_close(found, stride * every * one, rtol=1e-9, atol=1e-13)


@given(st.integers(1, 20), st.integers(0, 50), st.integers(0, 2**32 - 1), st.integers(1, 1000))
@settings(max_examples=50, deadline=None)
def test_in_stride_turns_every_offset_comes_once(stride, cycle, seed, session):
    turns = range(cycle * stride, (cycle + 1) * stride)
    offsets = [row_offset(turn, stride, seed, session) for turn in turns]
    assert sorted(offsets) == list(range(stride))
    assert offsets == [row_offset(turn, stride, seed, session) for turn in turns]


def test_offsets_have_no_preferred_order():
    first = Counter(row_offset(7 * cycle, 7, 0, 1) for cycle in range(700))
    assert len(first) == 7
    assert max(first.values()) < 150
    assert [row_offset(t, 7, 0, 1) for t in range(70)] != [
        row_offset(t, 7, 0, 2) for t in range(70)
    ]


@pytest.mark.parametrize("reading", ["elementwise", "product"])
def test_bfloat16_adapters(reading):
    config = replace(EXACT, reading=reading)
    adapters, past = _layers(dtype=torch.bfloat16)
    added = add_penalty(prepare_penalty(adapters, past, config, 0, 1), 0)
    assert added is not None
    wide = {
        n: Adapter(a.target, nn.Parameter(a.A.double()), nn.Parameter(a.B.double()), a.scaling)
        for n, a in adapters.items()
    }
    assert float(added.value) == pytest.approx(_expected(wide, past, config), rel=1e-5)
    for found, wanted in zip(_gradients(adapters), _gradients(wide), strict=True):
        assert found.dtype == torch.bfloat16
        assert float((found.double() - wanted).norm()) <= 0.01 * float(wanted.norm())


def test_switched_off_it_prepares_and_adds_nothing():
    adapters, past = _layers()
    penalty = prepare_penalty(adapters, past, replace(EXACT, weight=0.0), 0, 1)
    assert penalty.engine is None
    assert add_penalty(penalty, 0) is None
    assert not any(bool(g.any()) for g in _gradients(adapters))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("config", [EXACT, replace(EXACT, history_cache="int8", row_stride=3)])
def test_on_a_gpu_it_is_the_same(config):
    found, past = _layers(dtype=torch.float32, device="cuda")
    wanted, _ = _layers(dtype=torch.float32)
    there = add_penalty(prepare_penalty(found, past, config, 0, 1), 0)
    here = add_penalty(prepare_penalty(wanted, past, config, 0, 1), 0)
    assert there.value.device.type == "cuda"
    assert float(there.value) == pytest.approx(float(here.value), rel=1e-5)
    for one, other in zip(_gradients(found), _gradients(wanted), strict=True):
        assert float((one.cpu() - other).norm()) <= 1e-5 * float(other.norm())


class _Store:
    def __init__(self) -> None:
        self.saved: tuple[dict[str, Any], dict[str, Any]] | None = None

    def load(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        return self.saved

    def save(self, arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        self.saved = ({n: a.copy() for n, a in arrays.items()}, dict(meta))


def _train(
    config: StabilityConfig, store: _Store | None = None, stop_at: int = 10**9
) -> tuple[TrainLog, list[np.ndarray]]:
    """Three adapters learn to imitate random targets; stops at a step as a killed run does."""
    model = tiny_model().backbone.model
    adapters = new_adapters(find_targets(model, NAMES), 2, 2.0, torch.Generator().manual_seed(1))
    _, past = _layers()
    rng = np.random.default_rng(0)
    rows = ArrayInputs(rng.normal(size=(60, 6)).astype(np.float32))
    wanted = torch.from_numpy(rng.normal(size=(60, 32)).astype(np.float32))
    calls = iter(range(10**9))

    def compute_loss(inputs: dict[str, torch.Tensor], batch: Any) -> torch.Tensor:
        loss: torch.Tensor = (model(inputs["x"]) - wanted[torch.from_numpy(batch)]).pow(2).mean()
        return loss

    settings = TrainConfig(epochs=10, batch_size=30, learning_rate=5e-3, checkpoint_every=3)
    hooks = LoopHooks(stop=lambda: "killed" if next(calls) >= stop_at else "", store=store)
    with injected(model, adapters):
        log = train(compute_loss, rows, adapters, {}, past, config, settings, 2, hooks)
    return log, [p.detach().numpy() for a in adapters.values() for p in (a.A, a.B)]


@pytest.mark.parametrize(
    "config",
    [
        StabilityConfig(),
        StabilityConfig(row_stride=4, every=3),
        StabilityConfig(row_stride=3, history_cache="int8", reading="product"),
        StabilityConfig(weight=0.0),
    ],
)
@pytest.mark.parametrize("killed_after", [4, 11])
def test_a_resumed_run_samples_the_same_rows(config, killed_after):
    log, weights = _train(config)
    store = _Store()
    _train(config, store, killed_after)
    resumed, same = _train(config, store)
    assert resumed.resumed_at > 0
    assert resumed.penalty == log.penalty
    assert resumed.pull == log.pull
    assert resumed.task_loss == log.task_loss
    for one, other in zip(weights, same, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_step_without_the_loss_repeats_the_value_last_seen():
    log, _ = _train(StabilityConfig(row_stride=1, every=4))
    assert len(log.penalty) == log.steps == 20
    assert len(log.pull) == 5
    for step, value in enumerate(log.penalty):
        assert value == log.penalty[step - step % 4]
    assert len(set(log.penalty)) == 5


def test_a_weight_that_blocks_learning_is_named():
    blocked, _ = _train(StabilityConfig(weight=1e4, most_pull=None))
    assert "lower --stability-weight (it was 10000)" in " ".join(blocked.notes)
    for weight in (0.0, 1e-3):
        assert _train(StabilityConfig(weight=weight, most_pull=None))[0].notes == []


def test_a_weight_beyond_all_measure_does_not_block_what_the_limit_lets_be_learned():
    free, held, blocked = (
        _train(config)[0]
        for config in (
            StabilityConfig(weight=0.0),
            StabilityConfig(weight=1e4),
            StabilityConfig(weight=1e4, most_pull=None),
        )
    )
    assert held.notes == []
    cost, most = (sum(log.task_loss) - sum(free.task_loss) for log in (held, blocked))
    assert 0 < cost < 0.3 * most
    # of |task + penalty|, at most 0.3 / (1 - 0.3) of which is the penalty
    assert max(held.pull) <= 0.3 / 0.7 + 1e-4
    assert min(held.pull[1:]) > 0.15


@pytest.mark.parametrize("most_pull", [0.01, 0.5, 1e9])
def test_the_pull_is_limited_without_being_turned(most_pull):
    adapters, past = _layers()
    generator = torch.Generator().manual_seed(1)
    for gradient in _gradients(adapters):
        gradient.copy_(torch.randn(gradient.shape, generator=generator, dtype=torch.float64))
    task = [gradient.clone() for gradient in _gradients(adapters)]
    config = replace(EXACT, most_pull=most_pull)
    added = add_penalty(prepare_penalty(adapters, past, config, 0, 1), 0)
    assert added is not None
    others, _ = _layers()
    wanted = _expected(others, past, EXACT)
    penalty = torch.cat([g.flatten() for g in _gradients(others)])
    allowed = most_pull * torch.cat([g.flatten() for g in task]).norm()
    share = min(1.0, float(allowed / penalty.norm()))
    assert (share == 1.0) == (most_pull == 1e9)
    found = [after - before for after, before in zip(_gradients(adapters), task, strict=True)]
    torch.testing.assert_close(torch.cat([f.flatten() for f in found]), share * penalty)
    assert float(added.norm) == pytest.approx(share * float(penalty.norm()), rel=1e-5)
    assert float(added.value) == pytest.approx(wanted, rel=1e-10)


def test_where_the_task_has_no_gradient_nothing_is_pulled():
    adapters, past = _layers()
    added = add_penalty(prepare_penalty(adapters, past, replace(EXACT, most_pull=0.1), 0, 1), 0)
    assert added is not None
    assert float(added.norm) == 0
    assert not any(bool(gradient.any()) for gradient in _gradients(adapters))


@pytest.mark.parametrize(
    ("first", "last", "pull", "steps", "warns"),
    [
        (1.4, 1.39, 0.9, 50, True),
        (1.4, 1.5, 0.9, 50, True),
        (1.4, 1.2, 0.9, 50, False),  # it learns
        (1.4, 1.39, 0.2, 50, False),  # it does not, but for another reason
        (1e-4, 1e-4, 0.9, 50, False),  # nothing to learn
        (1.4, 1.39, 0.9, 9, False),  # too early to say
        (1.4, 1.39, None, 50, False),  # no penalty
    ],
)
def test_what_counts_as_blocked(first, last, pull, steps, warns):
    losses = [first] * (steps // 2) + [last] * (steps - steps // 2)
    note = collapse_note(losses, [] if pull is None else [pull] * steps, 0.1)
    assert bool(note) == warns
