"""The product as a method: `run_session` with any of its settings, so the evidence is on what ships."""

from __future__ import annotations

from collections.abc import Callable

from edge_pslora.compare.method import EVERY, Among, Setup
from edge_pslora.compare.scoring import head_scores
from edge_pslora.compare.trainer import base_weights, head_bytes
from edge_pslora.config import AdaptConfig
from edge_pslora.training.memory import Memory, first_memory
from edge_pslora.training.session import SessionData, SessionResult, run_session
from edge_pslora.training.targets import adapted_targets

Change = Callable[[AdaptConfig], AdaptConfig]  # the budget -> what the method does within it


class ProductLearner:
    """PS-LoRA as the command `adapt` learns it, in memory; a variant changes its settings.

    remember: what of a session the next one starts from.
    """

    def __init__(
        self,
        setup: Setup,
        change: Change = lambda config: config,
        remember: Callable[[SessionResult], Memory] = lambda result: result.memory,
    ) -> None:
        self.remember = remember
        self.model = setup.model
        self.config = change(setup.config)
        self.base = base_weights(setup.model.backbone.model)
        targets = adapted_targets(setup.model.backbone.model, self.config)
        self.memory = first_memory(setup.model, targets, self.config, setup.task_type)
        self.trained = 0

    def learn(self, data: SessionData) -> None:
        result = run_session(self.model, self.base, self.memory, data, self.config)
        self.memory = self.remember(result)
        self.trained = _trained(result) if self.config.train.epochs else 0

    def score(self, data: SessionData, among: Among = EVERY) -> tuple[float, ...]:
        return head_scores(self.model.backbone, self.memory.head, data, among)

    @property
    def kept_bytes(self) -> int:
        return memory_bytes(self.memory)


def memory_bytes(memory: Memory) -> int:
    """History, running sums (merge `cumulative`), the head's statistics and its rows' past."""
    history = sum(layer.packed.numel() for layer in memory.history.values())  # bytes
    running = sum(t.numel() * t.element_size() for t in (memory.running or {}).values())
    past = memory.head.past
    rows = () if past is None else (past.origin, past.history, past.updates)
    return (
        history
        + running
        + head_bytes(memory.head)
        + sum(t.numel() * t.element_size() for t in rows)
    )


def _trained(result: SessionResult) -> int:
    adapters = sum(a.A.numel() + a.B.numel() for a in result.adapters.values())
    head = result.memory.head
    return adapters + (head.weight.numel() + head.bias.numel() if head.kind == "linear" else 0)
