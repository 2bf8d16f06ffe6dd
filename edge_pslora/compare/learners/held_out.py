"""A LoRA method that keeps some samples of each session out of training, to choose by."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from edge_pslora.compare.method import EVERY, Among, Setup
from edge_pslora.compare.rule import Rule
from edge_pslora.compare.rules.held import HeldOut
from edge_pslora.compare.stream import Rows
from edge_pslora.compare.trainer import LoraLearner
from edge_pslora.config import HeadKind
from edge_pslora.training.session import SessionData

HELD_SHARE = 0.1
_HELD = 13  # keeps the draw apart from other draws with the same seed


class HoldingRule(Rule, Protocol):
    """A rule that looks at samples which were not trained on."""

    @property
    def held(self) -> HeldOut | None: ...


class HeldOutLearner:
    """Each session: a tenth of every class is held out for the rule, the rest is learned from."""

    def __init__(self, setup: Setup, rule: HoldingRule, kind: HeadKind = "linear") -> None:
        self.rule = rule
        self.inner = LoraLearner(setup, rule, kind)

    def learn(self, data: SessionData) -> None:
        seed = [self.inner.config.train.seed, self.inner.sessions, _HELD]
        draws = np.random.Generator(np.random.PCG64(seed))
        learned, held = hold_out(data, HELD_SHARE, draws)
        if self.rule.held is not None:
            self.rule.held.now = held
        self.inner.learn(learned)

    def score(self, data: SessionData, among: Among = EVERY) -> tuple[float, ...]:
        return self.inner.score(data, among)

    @property
    def kept_bytes(self) -> int:
        return self.inner.kept_bytes

    @property
    def trained(self) -> int:
        return self.inner.trained


def hold_out(
    data: SessionData, share: float, generator: np.random.Generator
) -> tuple[SessionData, SessionData | None]:
    """(rest, held out): the share of each label, rounded; both in the order of the data. None: no
    sample."""
    held = np.zeros(len(data.targets), np.bool_)
    for label in np.unique(data.targets):
        members = np.flatnonzero(data.targets == label)
        held[generator.permutation(members)[: round(share * len(members))]] = True
    parts = [
        SessionData(Rows(data.inputs, rows.astype(np.int64)), data.targets[rows])
        for rows in (np.flatnonzero(~held), np.flatnonzero(held))
    ]
    return parts[0], parts[1] if len(parts[1].targets) else None
