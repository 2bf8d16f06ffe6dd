"""What a GPU computes is the literal loss too."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from stability_kit import EXACT, SCALING, assert_equal, case, expected

from edge_pslora.core.stability_large import LargeTiles
from edge_pslora.core.stability_loss import StabilityTerms, stability_terms

OPTIONS = [
    {"reading": "elementwise"},
    {"reading": "product"},
    {"magnitude": False},
    {"history_cache": "int8"},
    {"history_cache": "int8", "reading": "product"},
]
SHAPES = [(1, 9, 2, (1,)), (9, 1, 2, (1, 2)), (7, 5, 3, (2, 0, 1)), (33, 17, 40, (4, 3))]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("elements", [11, 1 << 22])
def test_large_tiles_equal_the_reference(options, shape, elements):
    made = case(*shape)
    config = dataclasses.replace(EXACT, **options)
    stack = made.stack(config)
    engine = LargeTiles(elements)
    found = stability_terms(made.A, made.B, SCALING, stack, config, engine=engine)
    T = None if stack.codes is None else [c.double() / 127 for c in stack.codes]
    assert_equal(found, expected(made, config, T), 1e-10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_the_gpu_they_equal_the_reference():
    for shape in [(7, 5, 3, (2, 0, 1)), (64, 48, 4, (6, 6))]:
        made = case(*shape)
        stack = made.stack(EXACT, "cuda")
        found = stability_terms(
            made.A.cuda(), made.B.cuda(), SCALING, stack, EXACT, engine=LargeTiles()
        )
        on_cpu = StabilityTerms(found.loss.cpu(), found.grad_A.cpu(), found.grad_B.cpu())
        assert_equal(on_cpu, expected(made, EXACT), 1e-10)
