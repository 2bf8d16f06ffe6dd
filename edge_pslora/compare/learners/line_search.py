"""A LoRA method whose merge is chosen on samples that were kept out of training."""

from __future__ import annotations

import numpy as np

from edge_pslora.compare.method import EVERY, Among, Setup
from edge_pslora.compare.rules.adaptive import LineSearch
from edge_pslora.compare.stream import Rows
from edge_pslora.compare.trainer import LoraLearner
from edge_pslora.config import HeadKind
from edge_pslora.training.session import SessionData

HELD_SHARE = 0.1
_HELD = 13  # keeps the draw apart from other draws with the same seed


class LineSearchLearner:
    """Each session: a tenth of every class is held out, the rest is learned from, the merge is
    searched."""

    def __init__(self, setup: Setup, kind: HeadKind = "linear") -> None:
        self.rule = LineSearch()
        self.inner = LoraLearner(setup, self.rule, kind)

    def learn(self, data: SessionData) -> None:
        seed = [self.inner.config.train.seed, self.inner.sessions, _HELD]
        learned, self.rule.held = held_out(
            data, HELD_SHARE, np.random.Generator(np.random.PCG64(seed))
        )
        self.inner.learn(learned)

    def score(self, data: SessionData, among: Among = EVERY) -> tuple[float, ...]:
        return self.inner.score(data, among)

    @property
    def kept_bytes(self) -> int:
        return self.inner.kept_bytes

    @property
    def trained(self) -> int:
        return self.inner.trained


def held_out(
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
