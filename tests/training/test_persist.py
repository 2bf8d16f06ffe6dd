"""Memory through arrays and back: exact, and the same size whatever has been learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_pslora.core.history import empty_layer, fold, pool_bytes
from edge_pslora.errors import WorkspaceError
from edge_pslora.training.anchor import AnchorSet, grow
from edge_pslora.training.persist import (
    anchors_from_arrays,
    anchors_to_arrays,
    history_from_arrays,
    history_to_arrays,
)
from edge_pslora.training.stored import Stored

SHAPES = {"one": (6, 4), "two": (3, 9)}


def _history(sessions: int, budget: int):
    history = {n: empty_layer(*s) for n, s in SHAPES.items()}
    for seed in range(sessions):
        g = torch.Generator().manual_seed(seed)
        updates = {
            n: (torch.randn(o, 2, generator=g), torch.randn(2, i, generator=g))
            for n, (o, i) in SHAPES.items()
        }
        history = fold(history, updates, pool_bytes(SHAPES, budget))
    return history


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 12), st.integers(800, 3000))
def test_history_round_trip_is_exact_and_its_size_constant(sessions, budget):
    history = _history(sessions, budget)
    stored = history_to_arrays(history, budget)
    back = history_from_arrays(stored, "here")
    for name, layer in history.items():
        assert torch.equal(back[name].packed, layer.packed)
        assert (back[name].shape, back[name].planes) == (layer.shape, layer.planes)
        assert (back[name].eps, back[name].frobenius) == (layer.eps, layer.frobenius)
    empty = history_to_arrays(_history(0, budget), budget)
    assert {n: a.nbytes for n, a in stored.arrays.items()} == {
        n: a.nbytes for n, a in empty.arrays.items()
    }
    assert stored.metadata == empty.metadata
    assert stored.arrays["pool"].nbytes <= budget


@pytest.mark.parametrize("damage", ["pool", "layers", "bounds", "names", "planes", "negative"])
def test_a_history_that_does_not_fit_together_is_refused(damage):
    stored = history_to_arrays(_history(2, 1000), 1000)
    arrays, metadata = dict(stored.arrays), dict(stored.metadata)
    if damage == "pool":
        arrays["pool"] = arrays["pool"][:3]
    elif damage == "names":
        metadata["layers"] = '["one"]'
    elif damage == "planes":
        arrays["layers"] = arrays["layers"].copy()
        arrays["layers"][0, 2:] = (1, 2, 0)
    elif damage == "negative":
        arrays["bounds"] = -arrays["bounds"]
    else:
        del arrays[damage]
    with pytest.raises(WorkspaceError, match="here: expected a history"):
        history_from_arrays(Stored(arrays, metadata), "here")


def _candidates(session: int, n: int, width: int = 3) -> AnchorSet:
    rows = np.full((n, width), session, dtype=np.int32)
    rows[:, 0] = np.arange(n)
    return AnchorSet({"ids": rows}, np.array(["x"] * n), np.full(n, session, dtype=np.int32))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 600))
def test_anchors_stay_under_their_budget_with_equal_shares(sessions, n, budget):
    anchors = None
    for session in range(1, sessions + 1):
        anchors = grow(anchors, _candidates(session, n), budget, seed=0)
    if budget < 12:
        assert anchors is None
        return
    assert anchors is not None
    assert sum(a.nbytes for a in anchors.inputs.values()) <= budget
    counts = np.bincount(anchors.session, minlength=sessions + 1)[1:]
    assert counts.max() - min(counts.min(), n) <= 1 or counts.max() <= n
    kept = [tuple(row) for row in anchors.inputs["ids"]]
    assert len(set(kept)) == len(kept)


def test_sequences_of_another_width_are_padded_and_survive_the_file():
    anchors = grow(None, _candidates(1, 4, width=3), 10_000, seed=0)
    anchors = grow(anchors, _candidates(2, 4, width=5), 10_000, seed=0)
    assert anchors is not None
    assert anchors.inputs["ids"].shape == (8, 5)
    back = anchors_from_arrays(anchors_to_arrays(anchors))
    assert np.array_equal(back.inputs["ids"], anchors.inputs["ids"])
    assert np.array_equal(back.targets, anchors.targets)
    assert np.array_equal(back.session, anchors.session)
