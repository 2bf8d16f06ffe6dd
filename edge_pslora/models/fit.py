"""Fitting a built-in network to the first session's data, through a head that is thrown away."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edge_pslora.core.adamw import AdamW
from edge_pslora.data.types import Samples
from edge_pslora.models.types import Backbone, EncodedInputs
from edge_pslora.tasks import TASKS

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class FitConfig:
    """AdamW with a cosine schedule. Every `check_every` steps the loss on held-out samples is
    taken; after `patience` checks without a better one, or below `good_enough`, the fit ends. The best
    weights are kept."""

    steps: int = 400
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    check_every: int = 20
    patience: int = 6
    good_enough: float = 2e-3
    holdout: float = 0.15
    holdout_max: int = 1000


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's CPU generator seeded inside, as it was outside."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def fit_base(
    backbone: Backbone,
    inputs: EncodedInputs,
    samples: Samples,
    feature_size: int,
    seed: int,
    config: FitConfig | None = None,
) -> None:
    """Trains all of the backbone on the samples, in place; it ends in eval mode.

    The same seed, data and number of threads give the same weights.
    """
    settings = config or FitConfig()
    targets, outputs, loss_function = _problem(samples)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(samples)).astype(np.int64)
    # under fifty samples none can be spared: the training loss decides
    held = min(settings.holdout_max, int(settings.holdout * len(order))) if len(order) >= 50 else 0
    train = order[held:]
    check = order[:held] if held else train
    with seeded(seed):
        network = nn.ModuleDict({"backbone": backbone, "head": nn.Linear(feature_size, outputs)})
        optimizer = AdamW(network.parameters(), settings.learning_rate, settings.weight_decay)
        best, best_loss, waited = copy.deepcopy(network.state_dict()), float("inf"), 0
        batches = _batches(train, settings.batch_size, rng)
        for step in range(1, settings.steps + 1):
            network.train()
            rows = next(batches)
            loss = loss_function(_logits(network, inputs, rows), targets[torch.from_numpy(rows)])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.learning_rate *= _falling(step, settings.steps)
            if step % settings.check_every == 0 or step == settings.steps:
                now = _mean_loss(network, inputs, targets, check, loss_function)
                if now < best_loss - 1e-4:
                    best, best_loss, waited = copy.deepcopy(network.state_dict()), now, 0
                else:
                    waited += 1
                if waited >= settings.patience or best_loss < settings.good_enough:
                    break
        network.load_state_dict(best)
    backbone.eval()


def _falling(step: int, steps: int) -> float:
    """The factor from one rate of a cosine that ends at zero to the next, as torch's schedule has it."""
    return (1 + math.cos(math.pi * step / steps)) / (1 + math.cos(math.pi * (step - 1) / steps))


def _problem(samples: Samples) -> tuple[torch.Tensor, int, LossFunction]:
    """(targets, number of outputs, loss). Regression targets are standardised [N, 1]."""
    task = TASKS[samples.task_type]
    raw = np.asarray(samples.targets)
    if samples.task_type == "regression":
        exact = raw.astype(np.float64)
        raw = (exact - exact.mean()) / (exact.std() or 1.0)
    labels = task.own_labels or tuple(sorted(task.labels_in(raw)))
    return (
        task.encode(raw, labels),
        len(labels),
        lambda logits, targets: task.loss(logits, targets, {}, 1.0),
    )


def _logits(
    network: nn.ModuleDict, inputs: EncodedInputs, rows: npt.NDArray[np.int64]
) -> torch.Tensor:
    logits: torch.Tensor = network["head"](network["backbone"](**inputs.batch(rows)))
    return logits


@torch.no_grad()
def _mean_loss(
    network: nn.ModuleDict,
    inputs: EncodedInputs,
    targets: torch.Tensor,
    rows: npt.NDArray[np.int64],
    loss_function: LossFunction,
) -> float:
    network.eval()
    total = 0.0
    for start in range(0, len(rows), 256):
        part = rows[start : start + 256]
        loss = loss_function(_logits(network, inputs, part), targets[torch.from_numpy(part)])
        total += float(loss) * len(part)
    return total / len(rows)


def _batches(
    rows: npt.NDArray[np.int64], size: int, rng: np.random.Generator
) -> Iterator[npt.NDArray[np.int64]]:
    """Shuffled batches without end; one sample alone comes twice, as BatchNorm needs two."""
    while True:
        shuffled = rng.permutation(rows)
        for start in range(0, len(shuffled), size):
            batch = shuffled[start : start + size]
            yield np.repeat(batch, 2) if len(batch) == 1 else batch
