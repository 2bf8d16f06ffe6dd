"""Training rows that come twice: left out, counted, and never on both sides of a holdout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_pslora.data.duplicates import row_digests, without_duplicates
from edge_pslora.data.read import read_dataset
from edge_pslora.data.split import split
from edge_pslora.data.types import Dataset, Samples
from edge_pslora.errors import DataError


def table(rows: list[tuple[float, str]]) -> Samples:
    x = np.array([[v, 1.0] for v, _ in rows], np.float32)
    return Samples(
        "table", "classification", x, np.array([y for _, y in rows], np.str_), ("a", "b")
    )


VALUES, LABELS = st.sampled_from([0.0, -0.0, 1.0, 2.5, float("nan")]), st.sampled_from("ab")
ROWS = st.lists(st.tuples(VALUES, LABELS), min_size=1)


def _key(x: np.ndarray, y: str) -> tuple[str, str]:
    return str(x + 0.0), y


@settings(max_examples=80, deadline=None)
@given(
    rows=ROWS,
    held=st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from("ab")), max_size=3),
)
def test_each_row_once_and_none_of_the_holdout(
    rows: list[tuple[float, str]], held: list[tuple[float, str]]
) -> None:
    valid = table(held) if held else None
    dataset = Dataset("d", table(rows), valid, digest="0")
    before = [_key(x, y) for x, y in zip(dataset.train.inputs, dataset.train.targets, strict=True)]
    kept_out = (
        {_key(x, y) for x, y in zip(valid.inputs, valid.targets, strict=True)} if valid else set()
    )
    expected = [key for key in dict.fromkeys(before) if key not in kept_out]
    if not expected:
        with pytest.raises(DataError, match="--keep-duplicates"):
            without_duplicates(dataset)
        return
    train = without_duplicates(dataset).train
    assert [_key(x, y) for x, y in zip(train.inputs, train.targets, strict=True)] == expected


def test_what_was_left_out_is_counted_and_is_another_run(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    rows = [("a", "x"), ("b", "x"), ("a", "x"), ("a", "y"), ("a", "x")]
    path.write_text("\n".join(json.dumps({"text": t, "label": y}) for t, y in rows))
    dataset = read_dataset(path)
    once = without_duplicates(dataset)
    assert list(once.train.inputs) == ["a", "b", "a"]
    assert once.train.targets.tolist() == ["x", "x", "y"]
    assert once.notes[-1] == "2 duplicates left out of the training part"
    assert once.digest != dataset.digest
    assert without_duplicates(once) is once


def test_pictures_count_with_their_bytes(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for name, colour in (("a/1", 1), ("a/2", 1), ("a/3", 2), ("b/4", 1)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.new("RGB", (4, 4), (colour, 0, 0)).save(tmp_path / f"{name}.png")
    train = without_duplicates(read_dataset(tmp_path)).train
    assert [path.name for path in train.inputs] == ["1.png", "3.png", "4.png"]


def test_no_row_on_both_sides_of_a_split() -> None:
    rng = np.random.default_rng(0)
    rows = [(float(v), "ab"[v % 2]) for v in rng.integers(0, 60, 500)]
    dataset = without_duplicates(Dataset("d", table(rows), digest="0"))
    train, held = split(dataset.train, 0.2, 0)
    assert len(held) > 0
    assert not np.isin(row_digests(held), row_digests(train)).any()
