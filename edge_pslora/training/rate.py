"""The learning rate where nobody gave one: by what the adapters have to learn, and the model's width.

A model with a head of ours learns most by the head, which is solved: there 5e-4 or twice it make no
difference (docs/METHOD.md). What a language model learns, its adapters learn in the few dozen steps of
a session, and at 5e-4 they are far from done: of a model 128 wide eight times that is best for
sequential LoRA (benchmarks/LOG.md, 2026-11-26). Wider layers want smaller steps: as the width's power
-3/4 the rate passes our gate at 256 (benchmarks/LOG.md, 2026-11-27) and is at 2,048 what Schulman et al.
found there (LoRA Without Regret, 2025: 5e-4 (2000 / width)^0.781), the rate that all others have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median_low

from edge_pslora.config import RATE, AdaptConfig
from edge_pslora.tasks.types import Task
from edge_pslora.training.targets import Target

LANGUAGE_RATE, NARROW, WIDE = 4e-3, 128, 2048  # 4e-3 at 128 inputs and below, RATE from 2,048 on
POWER = 0.75


def with_rate(config: AdaptConfig, task: Task, targets: Sequence[Target]) -> AdaptConfig:
    """The settings with a learning rate: the one that was given, or the one of this kind of task."""
    if config.train.learning_rate is not None:
        return config
    widths = [target.shape[1] for target in targets]
    rate = RATE if task.has_head or not widths else language_rate(median_low(widths))
    return replace(config, train=replace(config.train, learning_rate=rate))


def language_rate(width: int) -> float:
    """Of a language model whose adapted layers have so many inputs (their median)."""
    return LANGUAGE_RATE * math.pow(NARROW / min(max(width, NARROW), WIDE), POWER)
