"""The function that a GPU compiles is the literal loss too; without a GPU or a compiler the tiles are."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
from stability_kit import EXACT, SCALING, assert_equal, case, expected

from edge_pslora.core.stability_fused import FusedTiles, fused_sums, fused_tiles
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
def test_what_is_compiled_equals_the_reference(options, shape, elements):
    made = case(*shape)
    config = dataclasses.replace(EXACT, **options)
    stack = made.stack(config)
    engine = FusedTiles(fused_sums, elements)
    found = stability_terms(made.A, made.B, SCALING, stack, config, engine=engine)
    T = None if stack.codes is None else [c.double() / 127 for c in stack.codes]
    assert_equal(found, expected(made, config, T), 1e-10)


def test_a_function_that_does_not_compile_is_not_used():
    def broken(*_: object) -> tuple[torch.Tensor, torch.Tensor]:
        raise RuntimeError("no compiler here\nand more")

    engine, reason = fused_tiles(torch.float32, "cpu", True, broken)
    assert engine is None
    assert reason.endswith("no compiler here")


def test_a_function_that_compiles_to_something_else_is_not_used():
    def wrong(*args: object) -> tuple[torch.Tensor, torch.Tensor]:
        slope, sums = fused_sums(*args)
        return slope, sums + 1

    engine, reason = fused_tiles(torch.float32, "cpu", True, wrong)
    assert engine is None
    assert "differs" in reason


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler on a CPU")
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
def test_compiled_for_the_cpu_it_equals_the_reference():
    engine, reason = fused_tiles(torch.float64, "cpu", True)
    assert engine is not None, reason
    _assert_engine(engine, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("ignore")
def test_compiled_for_the_gpu_it_equals_the_reference():
    engine, reason = fused_tiles(torch.float64, "cuda", True)
    assert engine is not None, reason
    _assert_engine(engine, "cuda")


def _assert_engine(engine: FusedTiles, device: str) -> None:
    for shape in [(7, 5, 3, (2, 0, 1)), (64, 48, 4, (6, 6))]:
        made = case(*shape)
        stack = made.stack(EXACT, device)
        found = stability_terms(
            made.A.to(device), made.B.to(device), SCALING, stack, EXACT, engine=engine
        )
        on_cpu = StabilityTerms(found.loss.cpu(), found.grad_A.cpu(), found.grad_B.cpu())
        assert_equal(on_cpu, expected(made, EXACT), 1e-10)
