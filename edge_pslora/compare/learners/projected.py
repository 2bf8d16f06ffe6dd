"""RanPAC's head: ridge regression on a random ReLU projection (arXiv 2307.02251, Eq. 6, 7 and algorithm
1).

h = relu(f W) with W [d, M] standard normal, G = sum h h^T, Q = sum h y^T over all sessions, head
(G + ridge I)^-1 Q, no bias. ridge: of 10^-8 ... 10^8 the one that, fitted to four of five of the
session's samples, has the least squared error on every fifth (the authors draw them). The paper has M
= 10,000; here M = 2,000, whose G has 16 MB as float32, what the product allows a head.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from edge_pslora.compare.learners.frozen import require_head
from edge_pslora.compare.learners.heads import empty_head, extended
from edge_pslora.compare.method import EVERY, Among, Setup
from edge_pslora.compare.rule import PlainRule
from edge_pslora.compare.scoring import scores_of
from edge_pslora.compare.trainer import LoraLearner, seeded_generator
from edge_pslora.tasks import TASKS
from edge_pslora.training.features import extract_features
from edge_pslora.training.session import SessionData

UNITS = 2000
RIDGES = tuple(10.0**k for k in range(-8, 9))
_PROJECTION = 999_983  # a session number that no stream reaches


def random_projection(feature_size: int, units: int, generator: torch.Generator) -> torch.Tensor:
    """W [d, M], standard normal, float32."""
    return torch.randn(feature_size, units, generator=generator)


def project(features: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """relu(f W): [N, d] and [d, M] give [N, M]."""
    return torch.relu(features @ projection)


def chosen_ridge(h: torch.Tensor, columns: torch.Tensor) -> float:
    """By every fifth of the session's samples; h [N, M], one-hot columns [N, C], float64.

    One eigendecomposition for all ridges, of the products of samples where there are fewer than units.
    """
    held = torch.arange(len(h)) % 5 == 4
    fitted, answers = h[~held], columns[~held]
    by_sample = len(fitted) < h.shape[1]
    values, vectors = torch.linalg.eigh(fitted @ fitted.T if by_sample else fitted.T @ fitted)
    left = (h[held] @ fitted.T if by_sample else h[held]) @ vectors
    rotated = vectors.T @ (answers if by_sample else fitted.T @ answers)
    values = values.clamp_min(0.0)[:, None]
    errors = [
        float((left @ (rotated / (values + ridge)) - columns[held]).square().mean())
        for ridge in RIDGES
    ]
    return RIDGES[min(range(len(RIDGES)), key=errors.__getitem__)]


def solve_ridge(gram: torch.Tensor, moment: torch.Tensor, ridge: float) -> torch.Tensor:
    """weight [C, M], float32."""
    eye = torch.eye(gram.shape[0], dtype=gram.dtype)
    solution: torch.Tensor = torch.linalg.solve(gram + ridge * eye, moment)
    return solution.T.float().contiguous()


class RanPacLearner:
    """Features, projected, under the ridge head; `adapt`: the network learns from the first session,
    with a linear head that is then thrown away (the paper's first phase)."""

    def __init__(self, setup: Setup, *, adapt: bool = False, units: int = UNITS) -> None:
        require_head(setup)
        self.model = setup.model
        self.config = setup.config
        self.first = LoraLearner(setup, PlainRule(), "linear") if adapt else None
        self.trained = 0
        generator = seeded_generator(setup.config.train.seed, _PROJECTION)
        self.projection = random_projection(setup.model.feature_size, units, generator)
        self.gram = torch.zeros(units, units, dtype=torch.float64)
        self.moment = torch.zeros(units, 0, dtype=torch.float64)
        self.head = empty_head(setup, units)

    def learn(self, data: SessionData) -> None:
        self.trained = 0
        if self.first is not None and self.first.sessions == 0:
            self.first.learn(data)
            self.trained = self.first.trained
        self.head, wanted = extended(self.head, data)
        h = self._hidden(data).double()
        columns = TASKS[self.head.task_type].columns(wanted, len(self.head.labels)).double()
        new = columns.shape[1] - self.moment.shape[1]
        moment = torch.cat([self.moment, self.moment.new_zeros(len(self.moment), new)], dim=1)
        self.gram, self.moment = self.gram + h.T @ h, moment + h.T @ columns
        weight = solve_ridge(self.gram, self.moment, chosen_ridge(h, columns))
        self.head = replace(self.head, weight=weight)

    def score(self, data: SessionData, among: Among = EVERY) -> tuple[float, ...]:
        logits = self._hidden(data) @ self.head.weight.T + self.head.bias
        return scores_of(logits, self.head.labels, data, among)

    @property
    def kept_bytes(self) -> int:
        """As float32; the projection is drawn again from the seed."""
        return 4 * (self.gram.numel() + self.moment.numel())

    def _hidden(self, data: SessionData) -> torch.Tensor:
        size = self.config.train.batch_size
        features = extract_features(self.model.backbone, data.inputs, size)
        return project(features, self.projection)
