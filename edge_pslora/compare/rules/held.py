"""Samples that are kept out of training, of this session and as anchors of the earlier ones."""

from __future__ import annotations

import numpy as np

from edge_pslora.compare.rule import Round
from edge_pslora.training.anchor import AnchorSet, grow
from edge_pslora.training.session import SessionData


class HeldOut:
    """now: of the session that is learned, set before it begins. anchors: of the earlier ones, the
    product's anchor set in its budget (config.budget.anchor_bytes)."""

    def __init__(self) -> None:
        self.now: SessionData | None = None
        self.anchors: AnchorSet | None = None

    def earlier(self, round: Round) -> list[SessionData]:
        """The anchors, one set for each session that they are of."""
        kept = self.anchors
        if kept is None:
            return []
        found = []
        for session in np.unique(kept.session):
            rows = kept.session == session
            arrays = {name: array[rows] for name, array in kept.inputs.items()}
            inputs = round.model.encoder.from_arrays(arrays)
            found.append(SessionData(inputs, kept.targets[rows]))
        return found

    def remember(self, round: Round) -> None:
        """This session's held-out samples become anchors."""
        if self.now is None:
            return
        rows = np.arange(len(self.now.targets), dtype=np.int64)
        session = np.full(len(rows), round.session, np.int32)
        new = AnchorSet(self.now.inputs.to_arrays(rows), self.now.targets, session)
        budget, seed = round.config.budget.anchor_bytes, round.config.train.seed
        self.anchors = grow(self.anchors, new, budget, seed)
        self.now = None

    @property
    def nbytes(self) -> int:
        """Inputs as they are kept, four bytes for each label."""
        kept = self.anchors
        if kept is None:
            return 0
        return sum(a.nbytes for a in kept.inputs.values()) + 4 * len(kept)
