"""Time and scratch memory of the stability loss by itself, against dense autograd, side by side."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.core_naive import naive_loss
from edge_pslora.config import StabilityConfig
from edge_pslora.core.stability import StabilityTarget, stability_target
from edge_pslora.training.inject import Adapter
from edge_pslora.training.penalty import add_penalty, prepare_penalty
from edge_pslora.training.targets import Target

SEED = 0
SCALING = 2.0

DEFAULT = StabilityConfig()
EXACT = replace(DEFAULT, every=1, row_stride=1, history_cache="none")
WAYS = {
    "exact": EXACT,
    "int8": replace(EXACT, history_cache="int8"),
    "stride 2": replace(EXACT, row_stride=2),
    "stride 4": replace(EXACT, row_stride=4),
    "stride 4, int8": replace(EXACT, row_stride=4, history_cache="int8"),
    "every 4": replace(EXACT, every=4),
    "exact, product": replace(EXACT, reading="product"),
    "default": DEFAULT,
}


@dataclass(frozen=True)
class LossFigure:
    """One way to compute the loss of all layers and its gradients.

    name: "naive" (dense, autograd, elementwise reading) or a key of WAYS. seconds: of one step, one
    entry per repeat; entry i of every figure was taken in the same round, so ratios are formed entry
    by entry. ("every 4": a quarter of the one step that computes it.) scratch_bytes: the most that one
    step has allocated beyond its arguments and results. kept_bytes: what stays allocated for a session:
    the history as the loss reads it.
    """

    name: str
    seconds: tuple[float, ...]
    scratch_bytes: int
    kept_bytes: int


def measure_loss(
    shapes: Sequence[tuple[int, int]], rank: int, history_rank: int, repeats: int, threads: int
) -> list[LossFigure]:
    """Figures of every way, interleaved over `repeats` (one more is run to warm up).

    shapes: [out, in] of each layer. Random adapters and histories, float32.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        layers = _layers(shapes, rank, history_rank)
        ways = [_naive(layers), *(_ours(name, config, layers) for name, config in WAYS.items())]
        seconds: list[list[float]] = [[] for _ in ways]
        for repeat in range(repeats + 1):
            for way, taken in zip(ways, seconds, strict=True):
                start = time.perf_counter()
                way.step()
                if repeat:
                    taken.append((time.perf_counter() - start) / way.every)
        return [
            LossFigure(way.name, tuple(taken), peak_bytes(way.step) + way.scratch, way.kept)
            for way, taken in zip(ways, seconds, strict=True)
        ]
    finally:
        torch.set_num_threads(before)


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes of torch's CPU allocator that `call` held at once, beyond what it leaves behind.

    Read from the trace that torch.profiler writes: it has every allocation and every release, of
    temporaries inside an operator too. Results that are still alive at the end are not scratch.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    memory = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])
    held = peak = 0
    for event in memory:
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    del result
    return int(peak - max(held, 0))


@dataclass(frozen=True)
class _Way:
    """every: the steps that one call stands for. scratch, kept: bytes allocated before the first."""

    name: str
    step: Callable[[], object]
    every: int = 1
    scratch: int = 0
    kept: int = 0


_Layers = dict[str, tuple[Adapter, StabilityTarget]]


def _layers(shapes: Sequence[tuple[int, int]], rank: int, history_rank: int) -> _Layers:
    generator = torch.Generator().manual_seed(SEED)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    layers = {}
    for i, (out, size) in enumerate(shapes):
        A = torch.nn.Parameter(draw(rank, size) * size**-0.5)
        B = torch.nn.Parameter(draw(out, rank) * 0.01)
        A.grad, B.grad = torch.zeros_like(A), torch.zeros_like(B)
        name = f"layer.{i}"
        past = draw(out, history_rank) * 0.05, draw(history_rank, size) * 0.05
        target = Target(name, "linear", (out, size), f"{name}.weight")
        layers[name] = Adapter(target, A, B, SCALING), stability_target(*past, base_rms=0.05)
    return layers


def _ours(name: str, config: StabilityConfig, layers: _Layers) -> _Way:
    adapters = {name: adapter for name, (adapter, _) in layers.items()}
    targets = {name: target for name, (_, target) in layers.items()}
    penalty = prepare_penalty(adapters, targets, config, SEED, 1)
    buffers = getattr(penalty.engine, "buffers", torch.empty(0))
    return _Way(
        name,
        lambda: add_penalty(penalty, 0),
        config.every,
        buffers.numel() * buffers.element_size(),
        sum(group.stack.nbytes for group in penalty.groups),
    )


def _naive(layers: _Layers) -> _Way:
    dense = {name: target.left @ target.right for name, (_, target) in layers.items()}

    def step() -> torch.Tensor:
        terms = [
            naive_loss(a.A, a.B, a.scaling, dense[name], target.scale, EXACT)
            for name, (a, target) in layers.items()
        ]
        loss = EXACT.weight * torch.stack(terms).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    kept = sum(S.numel() * S.element_size() for S in dense.values())
    return _Way("naive", step, kept=kept)
