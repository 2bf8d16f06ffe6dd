"""The search for layers to spare, on made-up models whose loss is known."""

from __future__ import annotations

import math

import pytest

from edge_pslora.exporters.quantize_search import MOST_RATINGS, MOST_RETURNS, search

LAYERS = [f"layer {k}" for k in range(40)]


class Model:
    """Each layer in int8 costs what `cost` says; the ratings see `seen`, by default the same."""

    def __init__(self, cost: dict[str, float], seen: dict[str, float] | None = None) -> None:
        self.cost, self.seen = cost, cost if seen is None else seen
        self.judged: list[frozenset[str]] = []
        self.rated: list[frozenset[str]] = []

    def drop(self, in_float: frozenset[str]) -> float:
        assert in_float not in self.judged, "nothing is judged twice"
        self.judged.append(in_float)
        return sum(cost for name, cost in self.cost.items() if name not in in_float)

    def error(self, alone: frozenset[str]) -> float:
        self.rated.append(alone)
        return sum(self.seen.get(name, 0.0) for name in alone)


def bound(groups: int) -> int:
    return 2 + 2 * math.ceil(math.log2(groups)) + MOST_RETURNS


def test_nothing_is_rated_where_everything_in_int8_is_good_enough():
    model = Model({"layer 3": 0.01})
    found = search(LAYERS, model.drop, model.error, 0.01)
    assert (found.in_float, found.enough, found.evaluations, found.ratings) == ((), True, 1, 0)


@pytest.mark.parametrize("bad", [1, 2, 3, 5, 8, 13, 39])
def test_exactly_the_bad_layers_are_left_in_float(bad):
    wild = LAYERS[1 : bad + 1]
    model = Model(dict.fromkeys(wild, 0.5) | dict.fromkeys(LAYERS[bad + 1 :], 0.0001))
    found = search(LAYERS, model.drop, model.error, 0.01)
    assert found.in_float == tuple(wild)
    assert found.enough
    assert found.drop == pytest.approx(0.0001 * (39 - bad))
    assert len(model.judged) == found.evaluations <= bound(40)
    assert len(model.rated) == found.ratings == 40


def test_layers_that_the_ranking_got_wrong_go_back_to_int8():
    seen = {name: 40.0 - k for k, name in enumerate(LAYERS)}
    model = Model({"layer 6": 0.5}, seen)
    found = search(LAYERS, model.drop, model.error, 0.01)
    assert found.enough
    assert found.in_float == ("layer 6",)
    assert found.evaluations <= bound(40)


def test_more_layers_than_ratings_are_searched_in_groups_of_neighbours():
    layers = [f"layer {k}" for k in range(3 * MOST_RATINGS - 5)]
    model = Model({"layer 70": 1.0})
    found = search(layers, model.drop, model.error, 0.0)
    assert "layer 70" in found.in_float
    assert len(found.in_float) == 3
    assert found.ratings <= MOST_RATINGS
    assert {name for group in model.rated for name in group} == set(layers)


def test_a_model_that_no_float_layer_saves_is_not_enough():
    model = Model(dict.fromkeys(LAYERS, 0.5))
    found = search(LAYERS, model.drop, model.error, 0.01)
    assert not found.enough
    assert len(found.in_float) == 39, "something has to be left in int8"
    assert found.drop == 0.5
    single = Model({"layer 0": 0.5})
    assert not search(LAYERS[:1], single.drop, single.error, 0.01).enough


def test_what_is_not_a_number_is_never_good_enough():
    nan = float("nan")
    model = Model({"layer 7": nan})
    found = search(LAYERS, model.drop, model.error, 1.0)
    assert found.enough
    assert found.in_float == ("layer 7",)
    assert found.drop == 0
