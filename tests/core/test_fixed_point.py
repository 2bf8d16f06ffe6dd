"""Packed factors: the error of half a step, equal bytes for equal input, nothing lost on the way."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_pslora.core.fixed_point import pack, packed_bytes, unpack


def _case(out: int, size: int, k: int, seed: int, scale: float = 1.0):
    g = torch.Generator().manual_seed(seed)
    left = scale * torch.randn(out, k, generator=g, dtype=torch.float64)
    return left, torch.randn(k, size, generator=g, dtype=torch.float64)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)),
    st.integers(0, 1000),
    st.sampled_from([1e-20, 1.0, 1e20]),
)
def test_every_number_is_within_half_a_step(out, size, counts, seed, scale):
    third, second, first = counts
    planes = (first + second + third, second + third, third)
    left, right = _case(out, size, planes[0], seed, scale)
    packed = pack(left, right, planes)
    assert packed.dtype == torch.uint8
    assert packed.numel() == packed_bytes((out, size), planes)
    found = unpack(packed, (out, size), planes)
    for rows, back in ((left.T, found[0].T), (right, found[1])):
        for component in range(planes[0]):
            width = 1 + (component < planes[1]) + (component < planes[2])
            step = float(rows[component].abs().max()) / (2 ** (8 * width - 1) - 1)
            error = float((back[component].double() - rows[component]).abs().max())
            # float32 holds scale and product: one part in 2^23 on top
            assert error <= 0.5 * step + 2.0**-23 * float(rows[component].abs().max())


def test_packing_is_a_function_and_packing_twice_changes_nothing():
    left, right = _case(7, 5, 4, 0)
    packed = pack(left, right, (4, 3, 1))
    assert torch.equal(packed, pack(left.clone(), right.clone(), (4, 3, 1)))
    again = pack(*(f.double() for f in unpack(packed, (7, 5), (4, 3, 1))), (4, 3, 1))
    for first, second in zip(
        unpack(packed, (7, 5), (4, 3, 1)), unpack(again, (7, 5), (4, 3, 1)), strict=True
    ):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=0.0)


def test_zeros_and_an_empty_history_pack_too():
    assert pack(torch.zeros(3, 0), torch.zeros(0, 2), (0, 0, 0)).numel() == 0
    left, right = unpack(pack(torch.zeros(3, 1), torch.ones(1, 2), (1, 1, 0)), (3, 2), (1, 1, 0))
    assert torch.equal(left, torch.zeros(3, 1))
    torch.testing.assert_close(right, torch.ones(1, 2))


def test_nothing_at_all_is_read_back_from_a_file():
    """numpy gives an array without entries a stride of 0."""
    empty = torch.as_strided(torch.zeros(0, dtype=torch.uint8), (0,), (0,))
    left, right = unpack(empty, (3, 2), (0, 0, 0))
    assert (tuple(left.shape), tuple(right.shape)) == ((3, 0), (0, 2))
