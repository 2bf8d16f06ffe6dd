"""Variants of the product's analytic head on the product's own features: projected, or of reduced
rank."""

from __future__ import annotations

from dataclasses import replace

import torch

from edge_pslora.compare.learners.frozen import require_head
from edge_pslora.compare.learners.heads import empty_head, extended
from edge_pslora.compare.learners.projected import project, random_projection
from edge_pslora.compare.method import EVERY, Among, Setup
from edge_pslora.compare.product import ProductLearner
from edge_pslora.compare.scoring import scores_of
from edge_pslora.compare.trainer import head_bytes, seeded_generator
from edge_pslora.core.analytic_head import empty_statistics
from edge_pslora.core.gram_rank import compress_gram, gram_rank, restore_gram
from edge_pslora.training.features import extract_features
from edge_pslora.training.head import refit
from edge_pslora.training.session import SessionData

UNITS = 1000  # of the projection: transport solves a system of this size, and keeps G in 8 MB
REDUCED_BYTES = 500_000  # of G
_PROJECTION = 999_979  # a session number that no stream reaches


class ProjectedLearner:
    """PS-LoRA as the product trains it; answered by a second analytic head on relu(f W).

    The projection is RanPAC's (arXiv 2307.02251); ridge by leave-one-out and transport, fitted between
    the projected features before and after the session, are the product's. Training goes through the
    product's own head, whose statistics are kept as well.
    """

    def __init__(self, setup: Setup, units: int = UNITS) -> None:
        require_head(setup)
        self.inner = ProductLearner(setup)
        generator = seeded_generator(setup.config.train.seed, _PROJECTION)
        self.projection = random_projection(setup.model.feature_size, units, generator)
        self.head = replace(empty_head(setup, units), statistics=empty_statistics(units))

    def learn(self, data: SessionData) -> None:
        before = self._hidden(data)
        self.inner.learn(data)
        self.head, wanted = extended(self.head, data)
        self.head = refit(self.head, self._hidden(data), wanted, self.inner.config.head, before)

    def score(self, data: SessionData, among: Among = EVERY) -> tuple[float, ...]:
        logits = self._hidden(data) @ self.head.weight.T + self.head.bias
        return scores_of(logits, self.head.labels, data, among)

    @property
    def kept_bytes(self) -> int:
        return self.inner.kept_bytes + head_bytes(self.head)

    @property
    def trained(self) -> int:
        return self.inner.trained

    def _hidden(self, data: SessionData) -> torch.Tensor:
        size = self.inner.config.train.batch_size
        features = extract_features(self.inner.model.backbone, data.inputs, size)
        return project(features, self.projection)


class ReducedLearner:
    """PS-LoRA whose head keeps no more of G than a budget holds (core.gram_rank), after every
    session."""

    def __init__(self, setup: Setup, budget: int = REDUCED_BYTES) -> None:
        require_head(setup)
        self.rank = gram_rank(setup.model.feature_size, budget)
        self.inner = ProductLearner(setup)

    def learn(self, data: SessionData) -> None:
        self.inner.learn(data)
        memory = self.inner.memory
        statistics = memory.head.statistics
        if statistics is None or self.rank is None:
            return
        gram = restore_gram(compress_gram(statistics.gram, self.rank))
        head = replace(memory.head, statistics=replace(statistics, gram=gram))
        self.inner.memory = replace(memory, head=head)

    def score(self, data: SessionData, among: Among = EVERY) -> tuple[float, ...]:
        return self.inner.score(data, among)

    @property
    def kept_bytes(self) -> int:
        statistics = self.inner.memory.head.statistics
        if statistics is None or self.rank is None:
            return self.inner.kept_bytes
        size = len(statistics.gram)
        reduced = 8 * (size + self.rank * size + 1)  # edge, vectors and values, rest; as float64
        return self.inner.kept_bytes - 8 * size * size + reduced

    @property
    def trained(self) -> int:
        return self.inner.trained
