"""Row sampling is unbiased, the int8 history is off by no more than it says."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stability_kit import EXACT, SCALING, assert_equal, case, expected

from edge_pslora.core.stability import tanh_codes
from edge_pslora.core.stability_loss import stability_terms
from edge_pslora.core.stability_tiles import in_place_tiles
from edge_pslora.errors import UsageError

PARTS = [
    {"reading": "elementwise"},
    {"reading": "product"},
    {"magnitude": False},
]


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 20), st.integers(1, 6)),
    ranks=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    stride=st.integers(1, 40),
    seed=st.integers(0, 10_000),
    parts=st.sampled_from(PARTS),
    cache=st.sampled_from(["none", "int8"]),
    tile=st.integers(1, 500),
)
def test_the_mean_over_all_offsets_is_the_full_loss_and_gradient(
    shape, ranks, stride, seed, parts, cache, tile
):
    """Of rows offset::stride, times stride; a stride longer than the layer included."""
    made = case(*shape, tuple(ranks), seed)
    config = dataclasses.replace(EXACT, history_cache=cache, **parts)
    sampled = dataclasses.replace(config, row_stride=stride)
    stack = made.stack(config)
    engine = in_place_tiles([stack.shape], torch.float64, elements=tile)
    full = stability_terms(made.A, made.B, SCALING, stack, config)
    terms = [
        stability_terms(made.A, made.B, SCALING, stack, sampled, offset, engine)
        for offset in range(stride)
    ]
    for name in ("loss", "grad_A", "grad_B"):
        mean = torch.stack([getattr(t, name) for t in terms]).mean(0)
        torch.testing.assert_close(mean, getattr(full, name), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("offset", [0, 1, 2])
def test_a_sample_is_the_reference_on_its_rows(parts, offset):
    """All readings are linear in T = tanh(a S): sampling is another T."""
    made = case(10, 7, 3, (2, 3))
    config = dataclasses.replace(EXACT, row_stride=3, **parts)
    T = []
    for target in made.targets:
        weight = torch.zeros(10, 1).double()
        weight[offset::3] = 3
        T.append(weight * torch.tanh(target.left @ target.right / target.rms))
    found = stability_terms(made.A, made.B, SCALING, made.stack(config), config, offset)
    assert_equal(found, expected(made, config, T), 1e-10)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 600), st.integers(1, 5)),
    st.integers(0, 4),
    st.integers(0, 10_000),
    st.floats(0.01, 100.0),
)
def test_codes_are_off_by_less_than_half_a_step(shape, rank, seed, temperature):
    (target,) = case(*shape, 1, (rank,), seed).targets
    a = 0.0 if target.silent else temperature / target.rms
    codes = tanh_codes(target, a)
    assert codes.dtype == torch.int8
    error = (codes.double() / 127 - torch.tanh(a * (target.left @ target.right))).abs()
    assert float(error.max()) <= 1 / 254 + 1e-12


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_int8_loss_is_the_reference_with_the_codes_for_tanh(parts, dtype):
    made = case(9, 14, 3, (2, 0, 4), dtype=dtype)
    config = dataclasses.replace(EXACT, history_cache="int8", temperature=1.3, **parts)
    stack = made.stack(config)
    assert stack.codes is not None
    assert stack.left.numel() == stack.right.numel() == 0
    assert stack.nbytes == 3 * 9 * 14 + 3 * 2 * 8  # one byte per entry, a and scale per layer
    found = stability_terms(made.A, made.B, SCALING, stack, config)
    wanted = expected(made, config, [c.double() / 127 for c in stack.codes])
    assert_equal(found, wanted, 1e-5 if dtype == torch.float32 else 1e-10)


def test_the_int8_loss_is_close_to_the_exact_one():
    made = case(60, 50, 4, (3, 5))
    coded = dataclasses.replace(EXACT, history_cache="int8")
    found = stability_terms(made.A, made.B, SCALING, made.stack(coded), coded)
    assert_equal(found, expected(made, EXACT), 0.01)


def test_without_a_direction_part_no_history_is_kept():
    made = case(6, 5, 2, (2, 2))
    for cache in ("none", "int8"):
        config = dataclasses.replace(EXACT, direction=False, history_cache=cache)
        stack = made.stack(config)
        assert stack.silent
        assert stack.codes is None
        assert stack.left.numel() == 0


@pytest.mark.parametrize(
    ("field", "value", "option"),
    [
        ("every", 0, "--stability-every"),
        ("row_stride", 0, "--stability-stride"),
        ("history_cache", "int4", "--stability-cache"),
    ],
)
def test_bad_options_are_named(field, value, option):
    with pytest.raises(UsageError, match=option):
        dataclasses.replace(EXACT, **{field: value})
