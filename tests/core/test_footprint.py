"""What is chosen fits, is the fastest that does, and the least that is named does."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from edge_pslora.core.footprint import MARGIN, Footprint, Growth, Way, choose, halves, least, peaks

SIZES = st.integers(0, 1 << 28)
GROWTHS = st.builds(Growth, SIZES, SIZES)
WAYS = st.builds(Way, st.sampled_from(["bf16", "float32"]), st.booleans(), GROWTHS)
FOOTPRINTS = st.builds(Footprint, SIZES, GROWTHS, *[SIZES] * 6, GROWTHS, st.lists(WAYS, min_size=1))


@given(FOOTPRINTS, st.integers(1, 64), st.integers(0, 1 << 36))
def test_what_is_chosen_keeps_the_budget(found, batch, budget):
    choice = choose(found, batch, budget)
    smallest = least(found, batch)
    assert (choice is None) == (smallest.peak > budget)
    if choice is not None:
        assert smallest.peak <= choice.peak <= budget
        assert 1 <= choice.micro_batch <= batch
        assert 1 <= choice.feature_batch <= batch
        size, rows = choice.micro_batch, choice.feature_batch
        assert choice.peaks == peaks(found, size, rows, choice.way, returning=choice.returning)


@given(FOOTPRINTS, st.integers(1, 64))
def test_the_least_that_is_named_does(found, batch):
    smallest = least(found, batch)
    assert choose(found, batch, smallest.peak) is not None
    assert choose(found, batch, smallest.peak - 1) is None


@given(FOOTPRINTS, st.integers(1, 64))
def test_without_a_budget_the_fastest_way_and_whole_batches(found, batch):
    choice = choose(found, batch, None)
    assert choice is not None
    assert (choice.micro_batch, choice.feature_batch) == (batch, batch)
    assert (choice.way, choice.returning) == (found.ways[0], False)


@given(st.integers(1, 10_000))
def test_halves_end_at_one(size):
    found = halves(size)
    assert (found[0], found[-1]) == (size, 1)
    assert all(b == (a + 1) // 2 for a, b in itertools.pairwise(found))


@given(FOOTPRINTS, st.integers(1, 64))
def test_what_steps_leave_behind_is_never_more_than_a_step(found, micro):
    way = found.ways[0]
    with_them = peaks(found, micro, 1, way, returning=True)
    without = peaks(replace(found, kernels=0), micro, 1, way, returning=True)
    step = with_them["training"] - (found.resident + MARGIN + found.results + found.trained)
    for stage in ("exporting", "checking"):
        assert with_them[stage] - without[stage] == min(found.kernels, step)
    for stage in ("features", "training", "merging"):
        assert with_them[stage] == without[stage]
