"""First-session adaptation: the network learns from the first session only (arXiv 2303.13199).

Afterwards its features stay, and only the head learns. The paper adapts FiLM layers and answers by
linear discriminant analysis; here it is the LoRA adapter of all other methods, and the product's
analytic head. What is tested is the idea: whether later sessions need the adapter at all.
"""

from __future__ import annotations

from dataclasses import replace

from edge_pslora.compare.learners.frozen import require_head
from edge_pslora.compare.method import EVERY, Among, Setup
from edge_pslora.compare.rule import PlainRule
from edge_pslora.compare.trainer import LoraLearner
from edge_pslora.training.session import SessionData


class FirstSessionLearner:
    """A LoRA session through the analytic head; from the second session on no step is made."""

    def __init__(self, setup: Setup) -> None:
        require_head(setup)
        self.inner = LoraLearner(setup, PlainRule(), "analytic")
        self.trained = 0

    def learn(self, data: SessionData) -> None:
        first = self.inner.sessions == 0
        self.inner.learn(data)
        self.trained = self.inner.trained if first else 0
        train = replace(self.inner.config.train, epochs=0)
        self.inner.config = replace(self.inner.config, train=train)

    def score(self, data: SessionData, among: Among = EVERY) -> tuple[float, ...]:
        return self.inner.score(data, among)

    @property
    def kept_bytes(self) -> int:
        return self.inner.kept_bytes
