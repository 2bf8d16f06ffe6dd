"""Which processor a session computes on, and the model's way there and back.

Only the model, the adapters and their optimiser go there. Features come back to the CPU, where head,
statistics, merge and checks are what they are without it; so nothing else has to know of a device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from edge_pslora.errors import BudgetError, ModelError, UsageError
from edge_pslora.models.failures import FOREIGN_ERRORS, first_line
from edge_pslora.models.types import Backbone
from edge_pslora.training.replacing import replaced

CPU = torch.device("cpu")
# relative difference of features, float32 on both: another order of sums, no other arithmetic
SAME = 1e-3


def find_device(name: str) -> torch.device:
    """name: as EngineConfig.device; "auto" is CUDA where there is one, then MPS, then the CPU.

    Raises:
        UsageError: this torch sees no such device.
    """
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cards else "mps" if mps else "cpu"
    wanted = torch.device(name)
    there = {"cpu": 1, "cuda": cards, "mps": int(mps)}[wanted.type]
    if (wanted.index or 0) >= there:
        seen = ["cpu", *(f"cuda:{i}" for i in range(cards)), *(["mps"] if mps else [])]
        raise UsageError(
            f"--device {name}",
            expected="a device that torch can use",
            found=f"{', '.join(seen)} (torch {torch.__version__})",
            remedy="leave --device out, or install the torch that was built for this device",
        )
    return torch.device("cuda", wanted.index or 0) if wanted.type == "cuda" else wanted


def described_device(device: torch.device) -> str:
    """Its name for people and for a run's digest."""
    if device.type != "cuda":
        return device.type
    return f"{device} ({torch.cuda.get_device_name(device)})"


def device_of(module: nn.Module) -> torch.device:
    """Where its parameters are; the CPU for a module without any."""
    return next((p.device for p in module.parameters()), CPU)


def peak_bytes(device: torch.device) -> int | None:
    """The most that torch held on it since `placed` began; None where torch does not count."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


@contextmanager
def placed(
    backbone: Backbone, device: torch.device, probe: dict[str, torch.Tensor], *, stays: bool = False
) -> Iterator[None]:
    """Within the block the backbone computes on `device`: inputs may come from the CPU, and features
    go back to it, unless `stays` (logits of a language model are too large to move). Afterwards the
    model is on the CPU again. After an error it is left where it is.

    probe: inputs of a few samples, computed on both.

    Raises:
        ModelError: the model cannot be computed there, or is another one there.
        BudgetError: the device's memory is too small.
    """
    if device == CPU:
        yield
        return
    with torch.no_grad():
        expected = backbone(**probe)
    forward = backbone.forward

    def moved(**inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = forward(**{name: x.to(device) for name, x in inputs.items()})
        return output if stays else output.to(CPU)

    with ExitStack() as stack:
        stack.enter_context(_memory_named(device))
        stack.enter_context(_plain_float32(device))
        stack.enter_context(replaced(backbone, moved))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        _move(backbone, device)
        _prove(backbone, device, probe, expected)
        yield
        backbone.model.to(CPU)


def _move(backbone: Backbone, device: torch.device) -> None:
    try:
        backbone.model.to(device)
    except torch.OutOfMemoryError:
        raise
    except FOREIGN_ERRORS as problem:
        raise _unsuited(device, first_line(problem)) from problem


def _prove(
    backbone: Backbone, device: torch.device, probe: dict[str, torch.Tensor], expected: torch.Tensor
) -> None:
    try:
        with torch.no_grad():
            found = backbone(**probe).to(CPU)
    except torch.OutOfMemoryError:
        raise
    except FOREIGN_ERRORS as problem:  # tensors that are no buffers stayed behind, say
        raise _unsuited(device, first_line(problem)) from problem
    difference = float((found - expected).norm() / expected.norm().clamp_min(1e-12))
    if not difference <= SAME:
        raise _unsuited(device, f"features that differ by {difference:.2g} of their size")


def _unsuited(device: torch.device, found: str) -> ModelError:
    return ModelError(
        f"--device {device}",
        expected=f"a model that computes there what it does on the CPU, within {SAME}",
        found=found,
        remedy="leave --device out",
    )


@contextmanager
def _memory_named(device: torch.device) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as problem:
        raise BudgetError(
            f"--device {device}",
            expected="room in the device's memory",
            found=first_line(problem),
            remedy="the old model was kept; use a smaller --micro-batch, --checkpointing, or the CPU",
        ) from problem


@contextmanager
def _plain_float32(device: torch.device) -> Iterator[None]:
    """cuDNN rounds float32 to ten bits of fraction by default: float32 is to mean float32."""
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield
