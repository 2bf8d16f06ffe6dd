"""Every published method and every one beyond, session after session on a tiny stream."""

from __future__ import annotations

import pytest
import torch

from edge_pslora.compare.learners.analytic_variants import ProjectedLearner
from edge_pslora.compare.learners.projected import RanPacLearner
from edge_pslora.compare.methods import METHODS
from tests.compare.rules_kit import average, learned, setup

# what takes seconds for its size alone is made small
SMALL = {
    "ranpac": lambda given: RanPacLearner(given, units=40),
    "ranpac+first": lambda given: RanPacLearner(given, adapt=True, units=40),
    "pslora+projected": lambda given: ProjectedLearner(given, units=40),
}
KEYS = [
    *("olora", "nlora", "inflora", "ella", "slao", "magmax", "ties", "replay", "der++"),
    *("ranpac", "ranpac+first", "slda", "first", "dynamic", "dynamic-anchors", "linesearch"),
    *("pslora+replay", "pslora+projected", "pslora+reduced"),
]
ALL = [key for k in KEYS for key in (k, f"{k}+analytic") if key in METHODS]


@pytest.fixture(scope="module")
def sequential() -> dict[str, float]:
    return {
        k: average(learned(METHODS[k].start(setup())))
        for k in ("sequential", "sequential+analytic")
    }


@pytest.mark.parametrize("key", ALL)
def test_a_method_learns_the_stream_the_same_way_twice(key, sequential):
    start = SMALL.get(key, METHODS[key].start)
    learner, again = (learned(start(setup())) for _ in range(2))
    score = average(learner)
    assert score == average(again)
    assert learner.kept_bytes == again.kept_bytes
    kind = "sequential+analytic" if "analytic" in key else "sequential"
    # five blobs far from each other: what is much worse than doing nothing about it is broken
    assert score > sequential[kind] - 0.15
    for one, other in zip(learner_tensors(learner), learner_tensors(again), strict=True):
        assert torch.equal(one, other)


def learner_tensors(learner: object) -> list[torch.Tensor]:
    """The weights of the network behind a learner."""
    inner = getattr(learner, "inner", learner)
    return [p.detach() for p in inner.model.backbone.parameters()]
