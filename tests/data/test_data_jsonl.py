"""JSON lines: strict, bounded, and read back as written."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_pslora.data.read import ReadOptions, read_dataset
from edge_pslora.data.types import Dataset
from edge_pslora.errors import DataError

GOOD = json.dumps({"text": "fine", "label": "x"})
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
LABELS = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)


def read(content: str | bytes, **options: object) -> Dataset:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "d.jsonl"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_dataset(path, ReadOptions(**options))  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(TEXTS.filter(str.strip), LABELS), min_size=1, max_size=8),
    ascii_only=st.booleans(),
)
def test_what_is_written_is_read_back(rows: list[tuple[str, str]], ascii_only: bool) -> None:
    lines = [json.dumps({"text": t, "label": n}, ensure_ascii=ascii_only) for t, n in rows]
    train = read("\n".join(lines)).train
    assert list(train.inputs) == [text for text, _ in rows]
    assert train.targets.tolist() == [label for _, label in rows]
    assert (train.modality, train.task_type) == ("text", "classification")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a", "label": NaN}', "NaN is not JSON"),
        (b'{"text": "a", "label": -Infinity}', "-Infinity is not JSON"),
        (b'{"text": "a", "label": 1e999}', "not a finite 32-bit number"),
        (b'{"text": "a", "label": "x", "label": "y"}', "a key given twice"),
        (b'{"text": "a", "label": "x"', "not JSON"),
        (b'{"text": "a", "label": "x"} {}', "not JSON"),
        (b'["a", "x"]', "not a JSON object"),
        (b'{"label": "x"}', "no 'text'"),
        (b'{"text": "a"}', "no 'label'"),
        (b'{"text": 5, "label": "x"}', "'text' is not text"),
        (b'{"text": "  ", "label": "x"}', "empty text"),
        (b'{"text": "a", "label": null}', "neither text nor a number"),
        (b'{"text": "a", "label": ["x"]}', "neither text nor a number"),
        (b'{"text": "a", "label": " "}', "no label"),
        (b'{"text": "a", "label": "x\\ny"}', "control character"),
        (b'{"text": "a", "label": "' + b"x" * 200 + b'"}', "200 characters"),
        (b'{"text": "a\\u0000b", "label": "x"}', "NUL"),
        (b'{"text": "a\\ud800b", "label": "x"}', "surrogate"),
        (b'{"text": "a", "label": 1' + b"0" * 40 + b"}", "beyond 64 bits"),
        (b'{"text": "a", "label": 1' + b"0" * 5000 + b"}", "not strict JSON"),
        (b'{"text": "a", "label": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"text": "a\x00", "label": "x"}', "NUL byte"),
        (b'{"text": "\xe9", "label": "x"}', "not UTF-8"),
        (b'{"text": "' + b"a" * (1 << 20) + b'", "label": "x"}', "longer than 1 MiB"),
        (b'{"text": "a", "label": 3}', "another kind than most"),
        (b'{"text": "a", "label": true}', "another kind than most"),
    ],
)
def test_a_bad_row_is_set_aside_with_its_reason(line: bytes, reason: str) -> None:
    lines = [GOOD.encode()] * 20
    lines[7] = line
    data = read(b"\n".join(lines))
    assert len(data.train) == 19
    assert [row.where for row in data.rejected] == ["d.jsonl:8"]
    assert reason in data.rejected[0].reason


def test_labels_of_every_kind() -> None:
    def train(*labels: object) -> tuple[str, list[object]]:
        part = read("\n".join(json.dumps({"text": "a", "label": n}) for n in labels)).train
        return part.task_type, part.targets.tolist()

    assert train(2, 2.0, 3) == ("classification", ["2", "2", "3"])
    assert train(True, False) == ("classification", ["True", "False"])
    assert train(1, 2.5) == ("regression", [1.0, 2.5])


def test_too_many_bad_rows_end_the_run() -> None:
    lines = [GOOD] * 9 + ["{"]
    assert len(read("\n".join(lines)).rejected) == 1
    with pytest.raises(DataError, match=r"at most 10% .* 2 of 11 \(first: d.jsonl:10: not JSON"):
        read("\n".join([*lines, "{"]))


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("", {}, "an empty file"),
        (" \n\n", {}, "at least one row"),
        (b"\xef\xbb\xbf" + GOOD.encode(), {}, "byte order mark"),
        (GOOD.encode("utf-16"), {}, "UTF-16"),
        (GOOD.encode("utf-32"), {}, "UTF-32"),
        (GOOD, {"text_column": "body"}, "column 'body'; found columns text, label"),
        (GOOD, {"label_column": "y"}, "column 'y'"),
        (GOOD, {"task_type": "regression"}, "numbers as labels"),
        (GOOD, {"min_classes": 2}, "at least 2 classes; found 1: x"),
        (GOOD, {"max_bytes": 10}, "at most 10 bytes"),
    ],
)
def test_unusable_files_are_explained(
    content: str | bytes, options: dict[str, object], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        read(content, **options)


def test_other_columns_can_be_named() -> None:
    line = json.dumps({"review": "good", "stars": 5})
    train = read(line, text_column="review", label_column="stars").train
    assert (list(train.inputs), train.targets.tolist()) == (["good"], ["5"])
