"""Training steps side by side: ours, ours without the loss, PEFT's LoRA, naive dense PS-LoRA."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.core_naive import naive_loss
from benchmarks.core_setup import SEED, Part, Setup, Sizes, threads_set_to
from benchmarks.table import Row, median_row
from edge_pslora.config import AdaptConfig, StabilityConfig
from edge_pslora.core.stability import StabilityTarget, stability_target
from edge_pslora.training.batches import epoch_batches
from edge_pslora.training.inject import Adapter, injected, new_adapters
from edge_pslora.training.loop import LoopHooks, train

STEPS = 2  # of a block; over two steps the loop's schedule keeps the rate constant
OURS, PLAIN, AGAIN, PEFT, NAIVE = "ours", "plain", "plain again", "peft", "naive"
# the same loop around a model that costs nothing
LOSS_ALONE, EXACT_ALONE, LOOP_ALONE = "loss alone", "exact loss alone", "loop alone"

Losses = list[float]
Extra = Callable[[Mapping[str, Adapter]], torch.Tensor]


@dataclass(frozen=True)
class BlockRun:
    """losses: of the task, per step; weights: A and B of every target afterwards, in order; seconds:
    of all steps together; preparing: seconds before the first, once a session."""

    losses: Losses
    weights: list[torch.Tensor]
    seconds: float
    preparing: float


def step_part(setup: Setup, sizes: Sizes) -> Part:
    """The rows on steps; the runs of one repetition stand next to each other in time."""
    with threads_set_to(sizes.threads):
        runs = measure_steps(setup, sizes)
    plain = [run.seconds / STEPS for run in runs[PLAIN]]

    def over(figure: str, one: str, other: str, target: float | None = None) -> Row:
        pairs = zip(runs[one], runs[other], strict=True)
        ratios = [a.seconds / b.seconds for a, b in pairs]
        return median_row(figure, ratios, "ratio", "lower", target)

    def alone(figure: str, one: str) -> Row:
        rounds = zip(runs[one], runs[LOOP_ALONE], plain, strict=True)
        shares = [(a.seconds - loop.seconds) / STEPS / step for a, loop, step in rounds]
        return median_row(figure, shares, "ratio", "lower")

    held = over("step with the loss / without it", OURS, PLAIN, 1.02)
    preparing = [run.preparing / step for run, step in zip(runs[OURS], plain, strict=True)]
    rows = [
        held,
        alone("the loss, measured alone / step without it", LOSS_ALONE),
        alone("the exact loss, measured alone / step without it", EXACT_ALONE),
        over("control: step without it / the same again", AGAIN, PLAIN),
        median_row("preparing, once a session / step without it", preparing, "ratio", "lower"),
        over("step with the loss / PEFT LoRA step", OURS, PEFT),
        over("step with the loss / naive dense PS-LoRA step", OURS, NAIVE),
        over("naive dense PS-LoRA step / step without a loss", NAIVE, PLAIN),
        median_row("step without the loss", [1000 * s for s in plain], "ms", "lower"),
    ]
    return Part(rows, [] if held.met else [_floor(setup, sizes, held)])


def measure_steps(setup: Setup, sizes: Sizes) -> dict[str, list[BlockRun]]:
    """One block of each kind in every repetition; one repetition more is run to warm up."""
    blocks = step_blocks(setup, step_config(setup, sizes.rank))
    runs: dict[str, list[BlockRun]] = {name: [] for name in blocks}
    for repetition in range(sizes.pairs + 1):
        order = list(blocks) if repetition % 2 else list(blocks)[::-1]  # drift favours neither
        for name in order:
            run = blocks[name]()
            if repetition:
                runs[name].append(run)
    return runs


def step_config(setup: Setup, rank: int) -> AdaptConfig:
    """The default settings, with this rank and batches that make an epoch one block."""
    default = AdaptConfig()
    return replace(
        default,
        lora=replace(default.lora, rank=rank),
        train=replace(default.train, batch_size=len(setup.tokens) // STEPS, epochs=1),
    )


def exact(config: StabilityConfig) -> StabilityConfig:
    """The same loss of every row at every step."""
    return replace(config, every=1, row_stride=1, history_cache="none")


def step_blocks(setup: Setup, config: AdaptConfig) -> dict[str, Callable[[], BlockRun]]:
    """One block of each kind, all from the same weights, inputs and optimiser settings.

    In this order neighbours are what is compared: ours, plain, plain again. The naive loss is exact
    whatever the settings say.
    """
    silent = StabilityConfig(weight=0.0)
    stability = stability_targets(setup)
    dense = {name: layer.dense() for name, layer in setup.history.items()}

    def penalty(adapters: Mapping[str, Adapter]) -> torch.Tensor:
        """weight * mean over layers of L_s, in a graph."""
        terms = [
            naive_loss(a.A, a.B, a.scaling, dense[n], stability[n].scale, config.stability)
            for n, a in adapters.items()
        ]
        return config.stability.weight * torch.stack(terms).mean()

    def block(chosen: StabilityConfig, extra: Extra | None = None, model: bool = True) -> BlockRun:
        used = replace(config, stability=chosen)
        return _loop_block(setup, used, stability, extra or _nothing, model)

    return {
        OURS: lambda: block(config.stability),
        PLAIN: lambda: block(silent),
        AGAIN: lambda: block(silent),
        PEFT: _peft_block(setup, config),
        NAIVE: lambda: block(silent, penalty),
        LOSS_ALONE: lambda: block(config.stability, _touch, model=False),
        EXACT_ALONE: lambda: block(exact(config.stability), _touch, model=False),
        LOOP_ALONE: lambda: block(silent, _touch, model=False),
    }


def stability_targets(setup: Setup) -> dict[str, StabilityTarget]:
    """What a session compares its updates with, from the history in place."""
    return {
        t.name: stability_target(
            *setup.history[t.name].factors(),
            float(setup.base(t).pow(2).mean().sqrt()),
        )
        for t in setup.targets
    }


def start_adapters(setup: Setup, config: AdaptConfig) -> dict[str, Adapter]:
    """The same adapters on every call; B is not zero, as after some steps of training."""
    generator = torch.Generator().manual_seed(SEED)
    adapters = new_adapters(setup.targets, config.lora.rank, config.lora.scaling, generator)
    with torch.no_grad():
        for adapter in adapters.values():
            adapter.B.normal_(0, 1e-3, generator=generator)
    return adapters


def _loop_block(
    setup: Setup,
    config: AdaptConfig,
    stability: Mapping[str, StabilityTarget],
    extra: Extra,
    model: bool,
) -> BlockRun:
    """One epoch of the product's loop on the task loss (model=False: without it) + `extra`."""
    adapters = start_adapters(setup, config)
    times = [time.perf_counter()]
    losses: Losses = []

    def compute_loss(inputs: dict[str, torch.Tensor], batch: npt.NDArray[np.int64]) -> torch.Tensor:
        loss = torch.zeros(())
        if model:
            loss = _task_loss(setup.model.backbone, setup, inputs, batch)
        losses.append(float(loss.detach()))
        return loss + extra(adapters)

    with injected(setup.model.backbone.model, adapters):
        train(
            compute_loss,
            setup.tokens,
            adapters,
            {},
            stability,
            config.stability,
            config.train,
            session=1,
            hooks=LoopHooks(on_step=lambda samples, note: times.append(time.perf_counter())),
        )
    weights = [p.detach() for a in adapters.values() for p in (a.A, a.B)]
    return BlockRun(losses, weights, times[-1] - times[1], times[1] - times[0])


def _nothing(_: Mapping[str, Adapter]) -> torch.Tensor:
    return torch.zeros(())


def _touch(adapters: Mapping[str, Adapter]) -> torch.Tensor:
    """Gives every parameter a gradient, at next to no cost."""
    return torch.stack([a.A.sum() + a.B.sum() for a in adapters.values()]).sum()


def _task_loss(
    backbone: nn.Module,
    setup: Setup,
    inputs: dict[str, torch.Tensor],
    batch: npt.NDArray[np.int64],
) -> torch.Tensor:
    return F.cross_entropy(setup.head(backbone(**inputs)), setup.labels[torch.from_numpy(batch)])


def _peft_block(setup: Setup, config: AdaptConfig) -> Callable[[], BlockRun]:
    """PEFT's LoRA on a copy of the model, trained by the loop that its users write."""
    import peft

    backbone = copy.deepcopy(setup.model.backbone)
    names = [target.name for target in setup.targets]
    lora = peft.LoraConfig(r=config.lora.rank, lora_alpha=config.lora.alpha, target_modules=names)
    peft.inject_adapter_in_model(lora, backbone.model)
    backbone.eval()
    factors = {
        name: [
            backbone.model.get_parameter(f"{name}.lora_{part}.default.weight")
            for part in ("A", "B")
        ]
        for name in names
    }
    trained = [factor for pair in factors.values() for factor in pair]
    settings = config.train

    def block() -> BlockRun:
        with torch.no_grad():
            for name, adapter in start_adapters(setup, config).items():
                factors[name][0].copy_(adapter.A)
                factors[name][1].copy_(adapter.B)
        losses: Losses = []
        start = time.perf_counter()
        optimizer = torch.optim.AdamW(trained, lr=settings.rate, weight_decay=0.0)
        prepared = time.perf_counter()
        for batch in _batches(setup, config):
            optimizer.zero_grad(set_to_none=True)
            loss = _task_loss(backbone, setup, setup.tokens.batch(batch), batch)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, settings.clip_norm)
            optimizer.step()
            losses.append(float(loss.detach()))
        seconds = time.perf_counter() - prepared
        weights = [p.detach().clone() for p in trained]
        return BlockRun(losses, weights, seconds, prepared - start)

    return block


def _batches(setup: Setup, config: AdaptConfig) -> list[npt.NDArray[np.int64]]:
    """Those of the product's loop, so that both sides see the same samples in the same order."""
    train = config.train
    return epoch_batches(setup.tokens.lengths(), train.batch_size, train.seed, 1, 0)


def _floor(setup: Setup, sizes: Sizes, step: Row) -> str:
    """Why the target was missed: the operations that the loss, as it is set, has to make."""
    config = AdaptConfig().stability
    tokens = sizes.batch * sizes.length
    part = 1 / (config.row_stride * config.every)
    products = part * sum(
        out * size * (setup.history[name].rank + 3 * sizes.rank)
        for name, (out, size) in setup.shapes.items()
    )
    share = products / (2 * tokens * setup.elements)  # forward, and backward to the inputs
    return (
        f"{step.figure}: the loss computes {products / 1e6:.0f} M multiply-adds (S, D and two "
        f"gradients), {share:.1%} of those of the "
        f"step, and two tanh of {part * setup.elements / 1e6:.1f} M elements"
    )
