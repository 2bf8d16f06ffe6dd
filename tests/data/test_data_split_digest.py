"""Splits partition and stratify; the digest sees every value, label and the order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_pslora.data.digest import dataset_digest
from edge_pslora.data.split import split
from edge_pslora.data.types import Samples
from edge_pslora.errors import DataError, UsageError


def labelled(labels: list[str]) -> Samples:
    inputs = np.arange(len(labels), dtype=np.float32)[:, None]
    return Samples("table", "classification", inputs, np.array(labels, dtype=np.str_))


def ids(samples: Samples) -> list[int]:
    return [int(value) for value in np.asarray(samples.inputs)[:, 0]]


LABELS = st.lists(st.sampled_from(("a", "b", "c", "rare")), min_size=1, max_size=60)
FRACTIONS = st.floats(0.01, 0.99)


@settings(deadline=None)
@given(LABELS, FRACTIONS, st.integers(0, 2**32 - 1))
def test_a_split_is_a_stratified_partition(labels: list[str], fraction: float, seed: int) -> None:
    samples = labelled(labels)
    rest, held = split(samples, fraction, seed)
    assert sorted(ids(rest) + ids(held)) == list(range(len(labels)))
    assert ids(rest) == sorted(ids(rest))
    for part in (rest, held):
        assert part.targets.tolist() == [labels[i] for i in ids(part)]
    for name in set(labels):
        total, out = labels.count(name), held.targets.tolist().count(name)
        if total == 1:
            assert out == 0
        else:
            assert 1 <= out <= total - 1
            assert abs(out - fraction * total) <= 1
    again = split(samples, fraction, seed)
    assert (ids(again[0]), ids(again[1])) == (ids(rest), ids(held))


@settings(deadline=None)
@given(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=60), FRACTIONS)
def test_regression_is_split_over_the_range(values: list[float], fraction: float) -> None:
    targets = np.array(values, dtype=np.float32)
    inputs = np.arange(len(values), dtype=np.float32)[:, None]
    rest, held = split(Samples("table", "regression", inputs, targets), fraction, 0)
    assert sorted(ids(rest) + ids(held)) == list(range(len(values)))
    assert len(rest) >= 1
    assert (len(held) >= 1) == (len(values) >= 2)
    if len(values) >= 2:
        middle = np.median(targets)
        assert held.targets.min() <= middle <= held.targets.max() or len(held) == 1


def test_seeds_differ_and_bad_fractions_are_refused() -> None:
    samples = labelled(["a", "b"] * 50)
    assert ids(split(samples, 0.3, 0)[1]) != ids(split(samples, 0.3, 1)[1])
    assert len(split(samples, 0.0, 0)[1]) == 0
    for fraction in (-0.1, 1.0, float("nan")):
        with pytest.raises(UsageError):
            split(samples, fraction, 0)


def test_texts_are_split_too() -> None:
    samples = Samples("text", "classification", ["p", "q", "r", "s"], np.array(list("aabb")))
    rest, held = split(samples, 0.5, 3)
    assert sorted([*rest.inputs, *held.inputs]) == ["p", "q", "r", "s"]


@settings(deadline=None)
@given(
    values=st.lists(st.floats(-9, 9, width=32), min_size=2, max_size=20),
    data=st.data(),
)
def test_every_value_label_and_the_order_count(values: list[float], data: st.DataObject) -> None:
    inputs = np.array(values, dtype=np.float32)[:, None]
    labels = np.array([str(i) for i in range(len(values))])
    samples = Samples("table", "classification", inputs, labels)
    whole = dataset_digest(samples)
    assert whole == dataset_digest(samples)
    assert len(whole) == 64
    at = data.draw(st.integers(0, len(values) - 1))
    changed = inputs.copy()
    changed[at] = np.nextafter(changed[at], np.float32(99))
    relabelled = labels.copy()
    relabelled[at] = "x"
    order = np.roll(np.arange(len(values)), 1)
    others = [
        Samples("table", "classification", changed, labels),
        Samples("table", "classification", inputs, relabelled),
        Samples("table", "classification", inputs, labels, ("name",)),
        Samples("array", "classification", inputs, labels),
        samples.take(order),
        samples.take(np.arange(len(values) - 1)),
    ]
    digests = [dataset_digest(other) for other in others]
    assert len({whole, *digests}) == len(others) + 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.text(), st.text(min_size=1)), min_size=2, max_size=6))
def test_texts_cannot_run_into_each_other(rows: list[tuple[str, str]]) -> None:
    rows = [(t.replace("\0", ""), n.replace("\0", "")) for t, n in rows]

    def digest(rows: list[tuple[str, str]]) -> str:
        targets = np.array([label for _, label in rows])
        return dataset_digest(Samples("text", "classification", [t for t, _ in rows], targets))

    moved = [(rows[0][0] + "|", rows[0][1]), ("|" + rows[1][0], rows[1][1]), *rows[2:]]
    shifted = [(rows[0][0] + "||", rows[0][1]), *rows[1:]]
    assert len({digest(rows), digest(moved), digest(shifted)}) == 3


def test_parts_are_told_apart_and_nan_is_one_value() -> None:
    one, two = labelled(["a", "b"]), labelled(["a", "b", "c"])
    calls = [(one, None, two), (one, two, None), (two, None, one), (one,), (one, two)]
    assert len({dataset_digest(*parts) for parts in calls}) == len(calls)
    nans = np.array([[0x7FC00000], [0xFFC00001]], dtype=np.uint32).view(np.float32)
    labels = np.array(["a", "b"])
    plain = Samples("table", "classification", np.full((2, 1), np.nan, np.float32), labels)
    odd = Samples("table", "classification", nans, labels)
    assert dataset_digest(plain) == dataset_digest(odd)


def test_images_count_with_their_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        path.write_bytes(path.name.encode())
    samples = Samples("image", "classification", paths, np.array(["x", "y"]))
    before = dataset_digest(samples)
    moved = [paths[0].rename(tmp_path / "c.png"), paths[1]]
    assert dataset_digest(Samples("image", "classification", moved, samples.targets)) == before
    paths[1].write_bytes(b"other")
    assert dataset_digest(Samples("image", "classification", moved, samples.targets)) != before
    paths[1].unlink()
    with pytest.raises(DataError, match="nothing there"):
        dataset_digest(samples)
