"""The forms of the history that the benchmark compares, and its loop over a stream."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.history import retention_runs, sign_rows
from benchmarks.history_forms import Dense, Factors, add, fidelity, quantise
from tests.compare.compare_kit import CONFIG, domains

SHAPES = {"a": (20, 12), "b": (9, 30)}


def _updates(seed: int, rank: int = 2) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return {
        n: (torch.randn(o, rank, generator=g), torch.randn(rank, i, generator=g))
        for n, (o, i) in SHAPES.items()
    }


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 4, 8]))
def test_a_dense_form_is_off_by_half_a_step_after_one_fold(seed, bits):
    form = Dense(SHAPES, bits)
    form.fold(_updates(seed))
    for name, (P, Q) in _updates(seed).items():
        S = P.double() @ Q.double()
        found = form.dense(name)
        if bits == 1:
            assert torch.equal(found.sign(), S.sign())
            torch.testing.assert_close(found.abs().mean(dim=1), S.abs().mean(dim=1))
        else:
            step = S.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
            assert bool(((found - S).abs() <= 0.5 * step + 1e-12).all())


def test_more_bits_remember_more():
    truth = {n: torch.zeros(s, dtype=torch.float64) for n, s in SHAPES.items()}
    forms = [Dense(SHAPES, 8), Dense(SHAPES, 4), Dense(SHAPES, 1)]
    for seed in range(5):
        truth = add(truth, _updates(seed))
        for form in forms:
            form.fold(_updates(seed))
    errors = [fidelity(form, truth).error for form in forms]
    assert errors == sorted(errors)
    assert fidelity(forms[0], truth).agreement > fidelity(forms[2], truth).agreement
    assert forms[0].nbytes > forms[1].nbytes > forms[2].nbytes


def test_factors_with_room_for_everything_remember_everything():
    form = Factors(SHAPES, 10_000)
    truth = {n: torch.zeros(s, dtype=torch.float64) for n, s in SHAPES.items()}
    for seed in range(3):
        truth = add(truth, _updates(seed))
        form.fold(_updates(seed))
    found = fidelity(form, truth)
    assert found.agreement > 0.9999
    assert found.error < 1e-4
    assert form.proven_agreement() <= found.agreement + 1e-9
    assert form.proven_agreement() > 0.99


def test_nothing_to_remember_is_remembered():
    truth = {n: torch.zeros(s, dtype=torch.float64) for n, s in SHAPES.items()}
    assert fidelity(Dense(SHAPES, 8), truth).agreement == 1.0
    assert quantise(torch.zeros(2, 3), 8).abs().sum() == pytest.approx(0.0)


def test_a_stream_is_run_with_each_form_behind_the_loss():
    stream = domains((0.0, 2.0))
    forms = lambda shapes: [Factors(shapes, 100_000), Dense(shapes, 8)]  # noqa: E731
    runs = dict(retention_runs(stream, CONFIG, 0, forms))
    assert list(runs) == ["no history", *(form.name for form in forms(SHAPES))]
    assert all(len(run.matrix) == 2 and run.backward is not None for run in runs.values())
    rows = sign_rows(stream, CONFIG, forms)
    agreement = [r.measured for r in rows if r.figure.endswith("sign agreement")]
    assert len(agreement) == 4  # two forms after one session and after two
    assert min(agreement) > 0.9
