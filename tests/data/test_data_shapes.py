"""What keys and columns mean: shapes of JSON lines and Parquet, names of labels, several labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_pslora.data.read import ReadOptions, read_dataset
from edge_pslora.data.types import Dataset, join_labels, split_labels
from edge_pslora.errors import DataError


def jsonl(folder: Path, *rows: dict[str, Any], **options: Any) -> Dataset:
    path = folder / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return read_dataset(path, ReadOptions(**options))


def parquet(folder: Path, columns: dict[str, Any], **options: Any) -> Dataset:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), folder / "d.parquet")
    return read_dataset(folder / "d.parquet", ReadOptions(**options))


CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
LANGUAGE = [
    ({"text": "a b"}, "a b"),
    ({"prompt": "a", "completion": "b"}, "a\nb"),
    ({"messages": CHAT}, "user: hi\nassistant: hello"),
    ({"instruction": "a", "input": "", "output": "c"}, "a\nc"),
    ({"instruction": "a", "input": "b", "output": "c"}, "a\nb\nc"),
    ({"input": "a", "output": "b"}, "a\nb"),
    ({"question": "a", "answer": "b"}, "a\nb"),
]
LABELLED = [
    ({"text": "a b"}, "a b"),
    ({"sentence1": "a", "sentence2": "b", "idx": 7}, "a\nb"),
    ({"premise": "a", "hypothesis": "b"}, "a\nb"),
    ({"question1": "a", "question2": "b"}, "a\nb"),
    ({"question": "a", "passage": "b"}, "a\nb"),
    ({"sentence": "a"}, "a"),
    ({"messages": CHAT}, "user: hi\nassistant: hello"),
]


@pytest.mark.parametrize(("row", "text"), LANGUAGE)
def test_rows_of_nothing_but_text_are_a_language_models(tmp_path, row, text):
    data = jsonl(tmp_path, row, row)
    assert (data.train.modality, data.train.task_type) == ("text", "language")
    assert list(data.train.inputs) == [text, text]
    assert data.train.targets.tolist() == ["", ""]
    assert all(key in data.notes[0] for key in row)
    assert ("joined by a line break" in data.notes[0]) == (len(row) > 1)


@pytest.mark.parametrize(("row", "text"), LABELLED)
def test_rows_with_a_label(tmp_path, row, text):
    data = jsonl(tmp_path, {**row, "label": "x"}, {**row, "label": "y"})
    assert data.train.task_type == "classification"
    assert list(data.train.inputs) == [text, text]
    assert data.train.targets.tolist() == ["x", "y"]


def test_a_label_under_another_name_is_never_read_as_text_alone(tmp_path):
    """A language model trained by mistake would be worse than an error."""
    with pytest.raises(DataError, match=r"a column 'label'; found columns text, stars"):
        jsonl(tmp_path, {"text": "a", "stars": 5})
    rows = [{"text": "a"}] * 60 + [{"text": "a", "label": "x"}]
    data = jsonl(tmp_path, *rows)
    assert [r.reason for r in data.rejected] == ["a label, which the rows before it lack"]


def test_labels_are_left_aside_when_the_text_alone_is_asked_for(tmp_path):
    data = jsonl(tmp_path, {"text": "a", "label": "x"}, task_type="language")
    assert (data.train.task_type, list(data.train.inputs)) == ("language", ["a"])


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("hello", None),
        ([], "empty text"),
        ([{"role": "user"}], "a message without"),
        (["hello"], "a message without"),
        ([{"role": 1, "content": "x"}], "a message without"),
        (7, "is not text"),
    ],
)
def test_messages_that_are_none(tmp_path, messages, reason):
    rows = [{"messages": CHAT}] * 19 + [{"messages": messages}]
    data = jsonl(tmp_path, *rows)
    assert len(data.rejected) == (reason is not None)
    assert reason is None or reason in data.rejected[0].reason


NAMES = ["cat", "dog"]


def test_numbers_get_the_names_beside_them(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps(NAMES))
    rows = [{"text": "a", "label": i % 2} for i in range(20)]
    data = jsonl(tmp_path, *rows)
    assert data.train.targets.tolist() == NAMES * 10
    assert "names" in data.notes[0]
    (tmp_path / "d.csv").write_text("a,label\n" + "1,0\n2,1\n" * 10)
    assert set(read_dataset(tmp_path / "d.csv").train.targets) == set(NAMES)
    np.savez(tmp_path / "d.npz", x=np.eye(2), y=np.array([1, 0]))
    assert read_dataset(tmp_path / "d.npz").train.targets.tolist() == ["dog", "cat"]
    data = parquet(tmp_path, {"a": [1.0, 2.0], "label": [1, 0]})
    assert data.train.targets.tolist() == ["dog", "cat"]
    # names stay what they are, and so do quantities
    assert jsonl(tmp_path, {"text": "a", "label": "World"}).train.targets.tolist() == ["World"]
    assert jsonl(tmp_path, *rows, task_type="regression").train.task_type == "regression"


def test_numbers_without_a_name(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps(NAMES))
    data = jsonl(tmp_path, *({"text": "a", "label": 2 if i == 5 else 0} for i in range(20)))
    assert [(r.where, r.reason) for r in data.rejected] == [
        ("d.jsonl:6", "a label outside labels.json (2, not 0 to 1)")
    ]


@pytest.mark.parametrize(
    "content", ["{", '{"a": 1}', '["a", "a"]', "[1]", "[]", '[" "]', "[" * 9999]
)
def test_names_that_are_none(tmp_path, content):
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(DataError, match=r"labels\.json: expected a list of different names"):
        jsonl(tmp_path, {"text": "a", "label": 0})


def test_names_that_a_parquet_file_brings(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    about = {"info": {"features": {"label": {"names": NAMES, "_type": "ClassLabel"}}}}
    table = pa.table({"text": ["a", "b"], "label": [1, 0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, tmp_path / "d.parquet")
    assert read_dataset(tmp_path / "d.parquet").train.targets.tolist() == ["dog", "cat"]


SETS = [["b", "a"], ["a"], [], ["a", "b"]]
JOINED = [join_labels(s) for s in SETS]


def test_several_labels(tmp_path):
    for key in ("label", "labels"):
        data = jsonl(tmp_path, *({"text": "t", key: s} for s in SETS))
        assert data.train.task_type == "multilabel"
        assert data.train.targets.tolist() == JOINED
    assert "2 labels (a, b)" in data.notes[-1]
    data = parquet(tmp_path, {"text": ["t"] * 4, "labels": SETS})
    assert data.train.targets.tolist() == JOINED
    data = parquet(tmp_path, {"x": [1.0] * 4, "label": SETS})
    assert (data.train.modality, data.train.targets.tolist()) == ("table", JOINED)
    matrix = np.array([[1, 1], [1, 0], [0, 0], [1, 1]])
    np.savez(tmp_path / "d.npz", x=np.eye(4), y=matrix, labels=np.array(["a", "b"]))
    assert read_dataset(tmp_path / "d.npz").train.targets.tolist() == JOINED
    np.save(tmp_path / "x.npy", np.eye(4))
    np.save(tmp_path / "y.npy", matrix)
    found = read_dataset(tmp_path / "x.npy").train
    assert [split_labels(t) for t in found.targets.tolist()] == [("0", "1"), ("0",), (), ("0", "1")]


def test_cells_are_split_only_when_that_is_asked_for(tmp_path):
    (tmp_path / "d.csv").write_text("f,label\n1,a;b\n2,b|a\n3,a\n4,\n")
    found = read_dataset(tmp_path / "d.csv", ReadOptions(task_type="multilabel")).train
    assert found.targets.tolist() == [join_labels(s) for s in ("ab", "ab", "a", "")]
    (tmp_path / "d.csv").write_text("f,label\n1,a;b\n2,a\n")
    assert read_dataset(tmp_path / "d.csv").train.targets.tolist() == ["a;b", "a"]
    columns = {"f": [1.0, 2.0], "label": ["a;b", "a"]}
    found = parquet(tmp_path, columns, task_type="multilabel").train
    assert found.targets.tolist() == [join_labels("ab"), "a"]
    assert parquet(tmp_path, columns).train.targets.tolist() == ["a;b", "a"]


def test_one_hot_rows_are_classes_on_request(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.eye(2), y=np.array([[0, 1], [1, 0]]))
    options = ReadOptions(task_type="classification")
    assert read_dataset(tmp_path / "d.npz", options).train.targets.tolist() == ["1", "0"]
    with pytest.raises(DataError, match="y of shape"):
        read_dataset(tmp_path / "d.npz", ReadOptions(task_type="regression"))
    np.savez(tmp_path / "d.npz", x=np.eye(2), y=np.ones((2, 2)), labels=np.array(["a", "a"]))
    with pytest.raises(DataError, match="2 different names"):
        read_dataset(tmp_path / "d.npz")


TABLE = "id,a,kind,b,label\n1,0.5,x,2,p\n2,0.25,y,3,q\n"


def test_columns_are_chosen(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text(TABLE)
    with pytest.raises(DataError, match=r"feature column 'kind'.*--ignore-columns 2"):
        read_dataset(path)
    for options in (
        ReadOptions(feature_columns=("a", "b")),
        ReadOptions(ignore_columns=("id", "kind")),
        ReadOptions(ignore_columns=("0", "2")),
    ):
        data = read_dataset(path, options)
        assert data.train.feature_names == ("a", "b")
        np.testing.assert_array_equal(data.train.inputs, [[0.5, 2], [0.25, 3]])
        assert "2 feature columns (a, b), label in 'label'" in data.notes[0]
    for bad in (
        ReadOptions(feature_columns=("a", "label")),
        ReadOptions(feature_columns=("c",)),
        ReadOptions(ignore_columns=("c",)),
        ReadOptions(ignore_columns=("id", "a", "kind", "b")),
    ):
        with pytest.raises(DataError, match=r"--(feature|ignore)-columns"):
            read_dataset(path, bad)
    columns = {"id": [1, 2], "a": [0.5, 0.25], "kind": ["x", "y"], "label": ["p", "q"]}
    data = parquet(tmp_path, columns, ignore_columns=("id", "kind"))
    assert data.train.feature_names == ("a",)


def test_a_table_of_texts_for_a_language_model(tmp_path):
    (tmp_path / "d.csv").write_text("text,label\none two,x\nthree,y\n")
    found = read_dataset(tmp_path / "d.csv", ReadOptions(task_type="language")).train
    assert (found.task_type, list(found.inputs)) == ("language", ["one two", "three"])
    assert parquet(tmp_path, {"text": ["a", "b"]}).train.task_type == "language"


def test_no_contents_of_rows_that_were_set_aside(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("a,label\n" + "1,x\n" * 20 + "secret,y\n")
    assert "secret" in read_dataset(path).rejected[0].reason
    assert "secret" not in str(read_dataset(path, ReadOptions(keep_samples=False)).rejected)
