"""The closed-form stability loss is the literal one, in both readings, for every shape and dtype."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stability_kit import EXACT, SCALING, Case, assert_equal, case, expected

from edge_pslora.config import StabilityConfig
from edge_pslora.core.stability import stability_target, stack_targets
from edge_pslora.core.stability_loss import computing_dtype, stability_terms
from edge_pslora.core.stability_tiles import in_place_tiles, tile_shape

PARTS = [p for p in itertools.product((True, False), repeat=2) if any(p)]
# out, in, r, ranks of the histories (one layer each)
SHAPES = [
    (1, 9, 2, (1,)),
    (9, 1, 2, (1, 2)),
    (1, 1, 1, (1,)),
    (7, 5, 3, (2, 0, 1)),
    (33, 17, 40, (4, 3)),
    (5, 5, 1, (0,)),
    (6, 4, 2, (5, 5, 5, 5, 5)),
]


def _config(reading="elementwise", parts=(True, True), **more) -> StabilityConfig:
    direction, magnitude = parts
    return dataclasses.replace(
        EXACT, reading=reading, direction=direction, magnitude=magnitude, **more
    )


@pytest.mark.parametrize("reading", ["elementwise", "product"])
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tile", [1, 11, 1 << 20])
def test_value_and_gradient_equal_the_reference(reading, parts, shape, tile):
    made = case(*shape)
    config = _config(reading, parts, temperature=1.3)
    stack = made.stack(config)
    engine = in_place_tiles([stack.shape], torch.float64, elements=tile)
    found = stability_terms(made.A, made.B, SCALING, stack, config, engine=engine)
    assert_equal(found, expected(made, config), 1e-10)


@settings(max_examples=100, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12)),
    ranks=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    seed=st.integers(0, 10_000),
    reading=st.sampled_from(["elementwise", "product"]),
    parts=st.sampled_from(PARTS),
    temperature=st.floats(0.1, 1.0),
    update=st.floats(1e-5, 1.0),
    tile=st.integers(1, 2000),
)
def test_float32_is_the_reference_to_five_digits(
    shape, ranks, seed, reading, parts, temperature, update, tile
):
    """For updates up to the size of the past: where tanh is 1 to seven digits, 1 - tanh^2 has none."""
    drawn = case(*shape, tuple(ranks), seed, torch.float32)
    size = SCALING * (drawn.B @ drawn.A).pow(2).mean((1, 2)).sqrt()
    scales = torch.tensor([t.scale if t.silent else t.rms for t in drawn.targets])
    made = Case(drawn.A, drawn.B * (update * scales / size)[:, None, None], drawn.targets)
    config = _config(reading, parts, temperature=temperature)
    stack = made.stack(config)
    engine = in_place_tiles([stack.shape], torch.float32, elements=tile)
    found = stability_terms(made.A, made.B, SCALING, stack, config, engine=engine)
    assert_equal(found, expected(made, config), 1e-5)


@pytest.mark.parametrize("reading", ["elementwise", "product"])
@pytest.mark.parametrize("cache", ["none", "int8"])
def test_bfloat16_is_computed_in_float32_and_returned_in_bfloat16(reading, cache):
    made = case(20, 30, 4, (3, 2), dtype=torch.float32)
    A, B = made.A.bfloat16(), made.B.bfloat16()
    config = _config(reading, history_cache=cache)
    stack = stack_targets(made.targets, config, computing_dtype(torch.bfloat16))
    found = stability_terms(A, B, SCALING, stack, config)
    exact = stability_terms(A.float(), B.float(), SCALING, stack, config)
    assert found.grad_A.dtype == found.grad_B.dtype == torch.bfloat16
    assert torch.equal(found.loss, exact.loss)
    assert torch.equal(found.grad_A, exact.grad_A.bfloat16())
    assert torch.equal(found.grad_B, exact.grad_B.bfloat16())


@pytest.mark.parametrize("reading", ["elementwise", "product"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_update_costs_nothing_and_has_a_finite_gradient(reading, dtype):
    made = case(6, 5, 2, (2, 0), dtype=dtype, update=0.0)
    config = _config(reading)
    terms = stability_terms(made.A, made.B, SCALING, made.stack(config), config)
    assert not terms.loss.any()
    assert not terms.grad_A.any()
    assert not terms.grad_B.any()


def test_a_history_that_is_zero_everywhere_is_silent():
    made = case(6, 5, 2, (2, 2))
    zero = stability_target(torch.zeros(6, 2).double(), torch.ones(2, 5).double(), 0.7)
    mixed = Case(made.A, made.B, (made.targets[0], zero))
    for targets in (mixed.targets, (zero, zero)):
        silent = Case(made.A, made.B, targets)
        for config in (EXACT, _config("product"), _config(parts=(True, False))):
            found = stability_terms(made.A, made.B, SCALING, silent.stack(config), config)
            assert_equal(found, expected(silent, config), 1e-10)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["elementwise", "product"]))
def test_agreeing_costs_less_than_silence_and_opposing_costs_more(seed, reading):
    made = case(8, 6, 2, (2,), seed)
    config = _config(reading)
    A, B = made.A[0], made.B[0]
    targets = [stability_target(sign * SCALING * B, A, base_rms=0.0) for sign in (1.0, -1.0)]
    silent = stability_target(B[:, :0], A[:0], 20 * targets[0].rms)
    losses = [
        float(
            stability_terms(
                made.A, made.B, SCALING, stack_targets([t], config, A.dtype), config
            ).loss
        )
        for t in (targets[0], silent, targets[1])
    ]
    assert losses[0] < losses[1] < losses[2]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_the_loss_has_no_unit(seed, factor):
    """Weights, history and update in other units: the same loss."""
    made = case(8, 6, 2, (2, 3), seed)
    scaled = tuple(stability_target(factor * t.left, t.right, factor * 0.7) for t in made.targets)
    other = Case(made.A, factor * made.B, scaled)
    one, same = (
        stability_terms(c.A, c.B, SCALING, c.stack(EXACT), EXACT).loss for c in (made, other)
    )
    torch.testing.assert_close(one, same, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cache", ["none", "int8"])
def test_arguments_are_not_changed_and_the_scratch_leaves_no_trace(cache):
    made = case(8, 6, 2, (2, 1), dtype=torch.float32)
    config = dataclasses.replace(EXACT, history_cache=cache)
    stack = made.stack(config)
    given_tensors = [made.A, made.B, stack.left, stack.right, stack.scale, stack.sharpness]
    given_tensors += [made.targets[0].left, made.targets[0].right]
    copies = [t.clone() for t in given_tensors]
    engine = in_place_tiles([stack.shape], torch.float32)
    engine.buffers.fill_(float("nan"))
    first = stability_terms(made.A, made.B, SCALING, stack, config, engine=engine)
    again = stability_terms(made.A, made.B, SCALING, stack, config, engine=engine)
    for before, after in zip(copies, given_tensors, strict=True):
        assert torch.equal(before, after)
    for name in ("loss", "grad_A", "grad_B"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert bool(torch.isfinite(getattr(first, name)).all())


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 30), st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 1 << 20))
def test_a_tile_fits_its_buffer(layers, rows, columns, elements):
    some_layers, some_rows = tile_shape(layers, rows, columns, elements)
    assert 1 <= some_layers <= layers
    assert 1 <= some_rows <= rows
    assert some_layers * some_rows * columns <= max(elements, columns)


def test_scratch_does_not_grow_with_the_layer():
    shapes = [(4, 4096, 4096), (24, 384, 384)]
    assert in_place_tiles(shapes, torch.float32, elements=1000).buffers.numel() == 3 * 4096
    assert in_place_tiles(shapes, torch.float32, elements=5000).buffers.numel() == 3 * 5000
    assert in_place_tiles([(2, 3, 4)], torch.float32).buffers.numel() == 3 * 24
