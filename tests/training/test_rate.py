"""Which learning rate a session has where nobody gave one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny import tiny_model

from edge_pslora.config import RATE, AdaptConfig, TrainConfig
from edge_pslora.errors import UsageError
from edge_pslora.tasks import TASKS
from edge_pslora.training.rate import language_rate, with_rate
from edge_pslora.training.targets import Target, find_targets


def _targets(*widths: int) -> tuple[Target, ...]:
    some = find_targets(tiny_model().backbone.model, ("2",))[0]
    return tuple(replace(some, shape=(8, width)) for width in widths)


@pytest.mark.parametrize(
    ("width", "rate"),
    [
        (16, 4e-3),
        (128, 4e-3),
        (256, 4e-3 / 8**0.25),
        (512, 4e-3 / 8**0.5),
        (2048, RATE),
        (8192, RATE),
    ],
)
def test_a_language_model_learns_the_slower_the_wider_it_is(width, rate):
    assert language_rate(width) == pytest.approx(rate)


def test_the_width_is_that_of_most_layers():
    # of four layers of 256 one is wider inside
    found = with_rate(AdaptConfig(), TASKS["language"], _targets(256, 256, 1024, 256))
    assert found.train.learning_rate == pytest.approx(language_rate(256))


@pytest.mark.parametrize("task", ["classification", "regression", "multilabel"])
def test_what_has_a_head_learns_at_the_one_rate(task):
    found = with_rate(AdaptConfig(), TASKS[task], _targets(16))
    assert found == replace(AdaptConfig(), train=TrainConfig(learning_rate=RATE))


def test_a_given_rate_stays():
    given = AdaptConfig(train=TrainConfig(learning_rate=0.03))
    assert with_rate(given, TASKS["language"], _targets(16)) == given


def test_without_layers_to_adapt_there_is_a_rate_too():
    assert with_rate(AdaptConfig(), TASKS["language"], ()).train.learning_rate == RATE


def test_a_rate_of_nothing_is_refused():
    with pytest.raises(UsageError, match="--learning-rate"):
        TrainConfig(learning_rate=0.0)
