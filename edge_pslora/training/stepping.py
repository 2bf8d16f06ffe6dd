"""The model as training steps compute it: with its adapters, in the plan's precision and memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace

import torch

from edge_pslora.errors import ModelError
from edge_pslora.models.types import Backbone
from edge_pslora.training.checkpointing import checkpointed
from edge_pslora.training.half_base import FullPrecision, half_base
from edge_pslora.training.inject import Adapter, injected
from edge_pslora.training.plan import TrainingPlan

HALF_TOLERANCE = (
    0.1  # relative difference of features, bf16 against float32: MiniLM 0.008, MobileNet 0.023
)


def settled(
    backbone: Backbone,
    adapters: Mapping[str, Adapter],
    plan: TrainingPlan,
    probe: dict[str, torch.Tensor],
    required: bool = False,
    lower: Sequence[str] = (),
) -> tuple[TrainingPlan, list[str]]:
    """The plan in the precision that the model takes, and what people should know, one sentence each: a
    model that bf16 does not suit is trained in float32.

    Args:
        probe: inputs of a few samples.
        required: bf16 was asked for by name.
        lower: modules that compute in float32 all the same; see `half_base`.

    Raises:
        ModelError: bf16 is required and the model cannot.
    """
    problem = half_problem(backbone, adapters, probe, lower) if plan.precision == "bf16" else ""
    if not problem:
        return plan, []
    if required:
        raise ModelError(
            "--precision bf16",
            expected="a model that computes in bf16 what it does in float32",
            found=problem,
            remedy="leave --precision out",
        )
    note = f"Training was computed in float32, not in bf16: {problem}."
    return replace(plan, precision="float32"), [note]


@contextmanager
def stepping(
    backbone: Backbone,
    adapters: Mapping[str, Adapter],
    plan: TrainingPlan,
    lower: Sequence[str] = (),
) -> Iterator[list[str]]:
    """Within the block the backbone computes with W + D of every adapter; afterwards with W, to the bit.

    Yields what people should know, one sentence each. plan: as `settled` gave it.
    """
    notes: list[str] = []
    half = plan.precision == "bf16"
    with ExitStack() as stack:
        stack.enter_context(
            half_base(backbone, adapters, lower) if half else injected(backbone.model, adapters)
        )
        if plan.checkpointing and not stack.enter_context(
            checkpointed(backbone.model, FullPrecision if half else nullcontext)
        ):
            notes.append("The model repeats no block, so no activation is computed again.")
        yield notes


def half_problem(
    backbone: Backbone,
    adapters: Mapping[str, Adapter],
    probe: dict[str, torch.Tensor],
    lower: Sequence[str] = (),
) -> str:
    """Why training in bf16 would not do, or "": a forward and a backward pass of the probe is tried."""
    with torch.no_grad():
        expected = backbone(**probe)
    try:
        with half_base(backbone, adapters, lower):
            found = backbone(**probe)
            found.sum().backward()
    except (RuntimeError, TypeError) as error:
        return (str(error).splitlines() or ["it failed"])[0][:200]
    finally:
        for adapter in adapters.values():
            adapter.A.grad = adapter.B.grad = None
    difference = float((found.detach() - expected).norm() / expected.norm().clamp_min(1e-12))
    if difference <= HALF_TOLERANCE:
        return ""
    return f"its features would differ by {difference:.2g} of their size"
