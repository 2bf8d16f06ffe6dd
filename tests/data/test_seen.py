"""Samples of earlier sessions that come again are left out: which, and what is kept to know them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_pslora.data import seen as module
from edge_pslora.data.duplicates import row_digests
from edge_pslora.data.seen import nothing_seen, remembered, without_seen
from edge_pslora.data.types import Dataset, Samples
from edge_pslora.errors import DataError

numbers = st.lists(st.integers(0, 30), max_size=40)


def _digests(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


@given(st.lists(numbers, max_size=5), st.integers(1, 20))
def test_the_newest_are_remembered_each_once(sessions: list[list[int]], most: int):
    kept, everything = nothing_seen(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST", most)
        for session in sessions:
            kept = remembered(kept, _digests(session))
            everything = [n for n in everything if n not in session] + [
                n for i, n in enumerate(session) if n not in session[i + 1 :]
            ]
            everything = everything[-most:]
            assert kept.dtype == np.uint64
            assert kept.tolist() == everything


def _dataset(rows: list[float], labels: list[str], valid: Samples | None = None) -> Dataset:
    values = np.array(rows, dtype=np.float32)[:, None]
    train = Samples("table", "classification", values, np.array(labels))
    return Dataset("data.csv", train, valid, digest="digest")


def test_what_was_learned_from_is_left_out_and_said():
    first = _dataset([1, 2, 3], ["a", "b", "a"])
    seen = remembered(nothing_seen(), row_digests(first.train))
    # 2 with another label is no copy
    grown = _dataset([3, 2, 4, 1, 5], ["a", "a", "b", "a", "a"])
    found = without_seen(grown, seen)
    assert found.train.inputs[:, 0].tolist() == [2, 4, 5]
    assert found.train.targets.tolist() == ["a", "b", "a"]
    assert found.notes == ("2 samples left out that earlier sessions learned from",)
    assert found.digest == grown.digest  # the same data make the same run


def test_new_data_and_a_valid_part_stay_as_they_are():
    old = _dataset([1, 2], ["a", "b"])
    new = _dataset([3, 4], ["a", "b"], valid=old.train)
    assert without_seen(new, row_digests(old.train)) is new
    assert without_seen(new, nothing_seen()) is new


def test_nothing_new_is_an_error_that_says_what_to_do():
    old = _dataset([1, 2], ["a", "b"])
    with pytest.raises(DataError, match=r"all 2 known.*--keep-duplicates") as caught:
        without_seen(old, row_digests(old.train))
    assert caught.value.exit_code == 4
