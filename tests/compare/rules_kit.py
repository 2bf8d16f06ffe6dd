"""A short stream on a tiny network, and a method's learner on it, for the tests of the rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from edge_pslora.compare.method import Learner, Setup
from edge_pslora.compare.rule import Round, Step
from edge_pslora.compare.trainer import LoraLearner
from edge_pslora.config import AdaptConfig, LoraConfig, TrainConfig
from edge_pslora.training.session import SessionData
from tests.tiny import ArrayInputs, blobs, tiny_model

TRAIN = TrainConfig(epochs=2, batch_size=16, learning_rate=5e-3)
CONFIG = AdaptConfig(lora=LoraConfig(rank=2, factors="float32"), train=TRAIN)
TASKS = (("a", "b"), ("c", "d"), ("a", "e"))


def setup(**train: object) -> Setup:
    config = replace(CONFIG, train=replace(TRAIN, **train))
    return Setup(tiny_model(), "classification", config)


def task(number: int, n: int = 20, seed: int = 0) -> SessionData:
    rows, names = blobs(TASKS[number], n=n, seed=seed + number)
    return SessionData(ArrayInputs(rows), names)


def learned(learner: Learner, tasks: int = len(TASKS)) -> Learner:
    for number in range(tasks):
        learner.learn(task(number))
    return learner


def average(learner: Learner) -> float:
    """Mean score over all tasks, all labels competing, on samples that were not learned from."""
    return sum(learner.score(task(k, seed=50))[0] for k in range(len(TASKS))) / len(TASKS)


class Seen:
    """A rule that looks at another one: what it was given, what it answered."""

    def __init__(self, inner: object) -> None:
        self.inner = inner
        self.rounds: list[Round] = []
        self.losses: list[list[float]] = []
        self.merged: list[dict[str, torch.Tensor]] = []
        self.kept: list[int] = []
        self.on_begin: Callable[[Round], None] = lambda round: None
        self.on_end: Callable[[Round], None] = lambda round: None

    def begin(self, round: Round) -> None:
        self.rounds.append(round)
        self.losses.append([])
        self.inner.begin(round)
        self.on_begin(round)

    def loss(self, round: Round, step: Step) -> torch.Tensor | None:
        loss = self.inner.loss(round, step)
        self.losses[-1].append(0.0 if loss is None else float(loss.detach()))
        return loss

    def after_step(self, round: Round) -> None:
        self.inner.after_step(round)

    def end(self, round: Round) -> dict[str, torch.Tensor]:
        self.on_end(round)
        merged = self.inner.end(round)
        self.merged.append({name: M.clone() for name, M in merged.items()})
        self.kept.append(self.inner.kept_bytes)
        return merged

    @property
    def kept_bytes(self) -> int:
        return self.inner.kept_bytes


def watched(
    rule: object, kind: str = "linear", tasks: int = len(TASKS)
) -> tuple[Seen, LoraLearner]:
    seen = Seen(rule)
    learner = LoraLearner(setup(), seen, kind)
    return seen, learned(learner, tasks)
