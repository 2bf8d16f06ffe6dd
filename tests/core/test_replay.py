"""Replay: the fast arithmetic equals a literal transcription bit for bit, whatever the layout."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_pslora.core import replay as module
from edge_pslora.core.replay import low_rank_update, next_weight, update_into
from edge_pslora.errors import EdgePsloraError
from edge_pslora.training.targets import Target, TargetKind, as_matrix, as_weight
from tests.reference_replay import literal_next, literal_update

RULES = ("none", "average", "max_magnitude", "constructive")
_numbers = st.one_of(
    st.floats(-4, 4, width=32),
    st.floats(-(2.0**-60), 2.0**-60, width=32),  # products below the smallest normal number
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.1, 3e-39]),
)
_sizes = st.integers(1, 6)


def same_bits(one: Any, other: Any) -> None:
    assert one.dtype == other.dtype == np.float32
    assert one.shape == other.shape
    np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))


@st.composite
def factors(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, float]:
    rank = draw(st.integers(0, 5))
    A = draw(hnp.arrays(np.float32, (rank, draw(_sizes)), elements=_numbers))
    B = draw(hnp.arrays(np.float32, (draw(_sizes), rank), elements=_numbers))
    return A, B, draw(st.sampled_from([2.0, 1.0, 16 / 3, 16 / 8**0.5, 1e-3]))


@given(factors())
def test_an_update_has_the_bits_of_the_literal_sum(given_factors):
    A, B, scaling = given_factors
    wanted = literal_update(A, B, scaling)
    same_bits(low_rank_update(B, A, scaling), wanted)
    # the same number, laid out as an embedding or a Conv1D has it
    same_bits(np.ascontiguousarray(low_rank_update(A.T, B.T, scaling).T), wanted)


@pytest.mark.parametrize("block", [1, 3, 8, 1 << 15])
def test_an_update_does_not_depend_on_its_blocks(block, monkeypatch):
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(7, 11)).astype(np.float32), rng.normal(size=(5, 7)).astype(np.float32)
    wanted = literal_update(A, B, 0.3)
    monkeypatch.setattr(module, "_BLOCK", block)
    same_bits(low_rank_update(B, A, 0.3), wanted)
    out = np.full((5, 22), np.nan, np.float32)
    update_into(out[:, ::2], B, A, 0.3)  # an output that is not contiguous
    same_bits(np.ascontiguousarray(out[:, ::2]), wanted)
    assert np.isnan(out[:, 1::2]).all()


def test_an_update_is_not_what_a_fused_or_reordered_sum_gives():
    """The order is a part of the format: these factors tell it from others."""
    A = np.array([[2.0**24], [1.0], [1.0], [-(2.0**24)]], np.float32)
    B = np.ones((1, 4), np.float32)
    assert low_rank_update(B, A, 1.0)[0, 0] == 0.0  # 2^24 + 1 rounds to 2^24, twice
    assert low_rank_update(B, A[::-1].copy(), 1.0)[0, 0] == 2.0
    third = np.float32(1 / 3)
    pair = low_rank_update(
        np.array([[-third * third, third]], np.float32), np.array([[1], [third]], np.float32), 1.0
    )
    assert pair[0, 0] == 0.0  # a fused multiplication and addition leaves the rounding of third^2


@pytest.mark.parametrize("rule", RULES)
@given(data=st.data())
@settings(max_examples=40)
def test_the_next_weight_has_the_bits_of_the_literal_rule(rule, data):
    shape = data.draw(hnp.array_shapes(max_dims=4, max_side=4))
    base, previous, update = (
        data.draw(hnp.arrays(np.float32, shape, elements=_numbers)) for _ in range(3)
    )
    session = data.draw(st.integers(1, 9))
    before = [array.copy() for array in (base, previous, update)]
    found = next_weight(rule, base, previous, update, session)
    same_bits(found, literal_next(rule, base, previous, update, session))
    for array, copy in zip((base, previous, update), before, strict=True):
        same_bits(array, copy)


KINDS: tuple[tuple[TargetKind, tuple[int, ...]], ...] = (
    ("linear", (4, 3)),
    ("mha_in_proj", (9, 3)),
    ("mha_out_proj", (3, 3)),
    ("transposed_linear", (3, 4)),
    ("embedding", (5, 3)),
    ("conv1d", (4, 2, 3)),
    ("conv2d", (4, 2, 3, 2)),
)


@pytest.mark.parametrize(("kind", "shape"), KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_a_session_in_torch_and_a_receiver_in_numpy_agree(kind, shape, rule):
    """What training/merging.py does with matrices [out, in] is what the receiver does with weights."""
    rng = np.random.default_rng(7)
    base = rng.normal(size=shape).astype(np.float32)
    previous = base + np.float32(0.1) * rng.normal(size=shape).astype(np.float32)
    turned = kind in ("embedding", "transposed_linear")
    out_in = shape[::-1] if turned else (shape[0], int(np.prod(shape[1:])))
    A = rng.normal(size=(2, out_in[1])).astype(np.float32)
    B = 0.1 * rng.normal(size=(out_in[0], 2)).astype(np.float32)
    B = B.astype(np.float32)
    target = Target("layer", kind, "layer.weight", out_in)
    matrices = [as_matrix(torch.from_numpy(w), target).numpy() for w in (base, previous)]
    wanted = literal_next(rule, *matrices, literal_update(A, B, 2.0), 3)
    back = as_weight(torch.from_numpy(wanted), target, torch.Size(shape)).numpy()
    left, right = (A.T, B.T) if turned else (B, A)
    update = low_rank_update(left, right, 2.0).reshape(shape)
    same_bits(next_weight(rule, base, previous, update, 3), np.ascontiguousarray(back))


# prints a digest of updates and weights large enough for every vector loop and its remainder
_DIGEST = """
import hashlib, numpy as np
from edge_pslora.core.replay import low_rank_update, next_weight
rng, digest = np.random.default_rng(3), hashlib.sha256()
for rows, columns, rank in ((37, 301, 8), (5, 70001, 3)):
    left, right = (rng.normal(size=s).astype(np.float32) for s in ((rows, rank), (rank, columns)))
    update = low_rank_update(left, right, 0.7)
    base = rng.normal(size=(rows, columns)).astype(np.float32)
    for rule in ("none", "average", "max_magnitude", "constructive"):
        digest.update(next_weight(rule, base, base + base[::-1] / 9, update, 3).tobytes())
print(digest.hexdigest())
"""


def test_the_bits_do_not_depend_on_the_processors_vector_instructions():
    """numpy with every instruction set that it chooses among at run time, and with none of them."""
    path = (
        "numpy._core._multiarray_umath" if np.__version__ >= "2" else "numpy.core._multiarray_umath"
    )
    umath = importlib.import_module(path)
    chosen = [name for name in umath.__cpu_dispatch__ if umath.__cpu_features__.get(name)]
    found = set()
    for disabled in ([], chosen):
        environ = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(disabled)}
        child = subprocess.run(
            [sys.executable, "-c", _DIGEST], env=environ, capture_output=True, text=True, check=True
        )
        found.add(child.stdout)
    assert len(found) == 1


def test_what_overflows_is_an_error_not_a_weight():
    big = np.full((1, 1), 3e38, np.float32)
    with pytest.raises(EdgePsloraError, match="not finite"):
        next_weight("none", 0 * big, 0 * big, low_rank_update(big, big, 1.0), 1)
    with pytest.raises(EdgePsloraError, match="not finite"):
        next_weight("constructive", -big, big, big, 1)


def test_other_dtypes_and_shapes_are_refused():
    ones = np.ones((2, 2), np.float32)
    for left, right in ((ones.astype(np.float64), ones), (ones, ones[:1]), (ones[0], ones)):
        with pytest.raises(EdgePsloraError, match="float32"):
            low_rank_update(left, right, 1.0)
