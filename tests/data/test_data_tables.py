"""Tables: what was written is read back; headers, delimiters, label columns, bad rows."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_pslora.data.columns import number
from edge_pslora.data.read import ReadOptions, read_dataset
from edge_pslora.data.types import Dataset
from edge_pslora.errors import DataError

FLOATS = st.one_of(st.none(), st.floats(width=32, allow_nan=False, allow_infinity=False))
# "c" in front: neither a number nor one of the words for "missing".
NAMES = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters=",;\t"), max_size=8)
MISSING = ("", "?", "NA", "NaN", "nan")


def read(text: str | bytes, name: str = "data.csv", **options: object) -> Dataset:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return read_dataset(path, ReadOptions(**options))  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    features=st.integers(2, 4),
    delimiter=st.sampled_from(",;\t"),
    end=st.sampled_from(("\n", "\r\n")),
    header=st.booleans(),
    quoted=st.booleans(),
)
def test_what_is_written_is_read_back(
    data: st.DataObject, features: int, delimiter: str, end: str, header: bool, quoted: bool
) -> None:
    names = NAMES.map(lambda name: "c" + name)
    row = st.tuples(st.lists(FLOATS, min_size=features, max_size=features), names)
    rows = data.draw(st.lists(row, min_size=1, max_size=8))
    rows.insert(0, ([0.5] * features, "c," + delimiter.strip() + '"quoted"'))
    out = io.StringIO()
    quoting: Literal[0, 1] = csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quoting)
    if header:
        writer.writerow([f"feature {i}" for i in range(features)] + ["label"])
    for values, label in rows:
        words = [data.draw(st.sampled_from(MISSING)) if v is None else repr(v) for v in values]
        writer.writerow([*words, label])
    train = read(out.getvalue()).train
    expected = np.array([[np.nan if v is None else v for v in values] for values, _ in rows])
    np.testing.assert_array_equal(train.inputs, expected.astype(np.float32))
    assert train.targets.tolist() == [label for _, label in rows]
    first = "feature 0" if header else "column 0"
    assert train.feature_names[0] == first


@given(st.one_of(st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_are_exact(value: int | float) -> None:
    assert number(repr(value)) == value


@pytest.mark.parametrize(
    "cell", ["", "abc", "1_000", "inf", "-Infinity", "nan", "٣", "0x10", "1,5"]
)
def test_only_plain_finite_numbers_are_numbers(cell: str) -> None:
    assert number(cell) is None


def test_whole_numbers_become_their_integer_name() -> None:
    train = read("a,label\n1,2.0\n1,2\n1,1e1\n1,-0.0\n").train
    assert train.targets.tolist() == ["2", "2", "10", "0"]


@pytest.mark.parametrize(
    ("column", "labels", "features"),
    [
        (None, ["1", "2"], ["a", "c"]),
        ("c", ["5", "6"], ["a", "label"]),
        ("0", ["3", "4"], ["label", "c"]),
        ("-1", ["5", "6"], ["a", "label"]),
    ],
)
def test_the_label_column_is_chosen(
    column: str | None, labels: list[str], features: list[str]
) -> None:
    train = read("a,label,c\n3,1,5\n4,2,6\n", label_column=column).train
    assert train.targets.tolist() == labels
    assert list(train.feature_names) == features


def test_a_name_that_is_a_number_is_a_name_first() -> None:
    train = read("1,0,label\n7,8,9\n7,8,9\n", label_column="0").train
    assert train.targets.tolist() == ["8", "8"]


def test_without_a_header_the_first_row_is_data() -> None:
    train = read("Ethanol,10.0,2\nAcetone,11.0,3\n", label_column="0").train
    assert train.targets.tolist() == ["Ethanol", "Acetone"]
    assert train.feature_names == ("column 1", "column 2")


def test_missing_codes_are_missing_in_features_and_labels() -> None:
    rows = "\n".join(["1,-9,0", "-9.0,2,1", *["1,1,1"] * 18, "3,3,-9"])
    data = read("a,b,label\n" + rows + "\n", missing=(-9.0,))
    assert np.isnan(np.asarray(data.train.inputs)).sum() == 2
    assert [(row.where, row.reason) for row in data.rejected] == [("data.csv:22", "no label")]


def test_bad_rows_are_set_aside_in_order_and_the_rest_is_used() -> None:
    lines = ["a,b,label"] + ["1,2,x"] * 60
    lines[5], lines[7], lines[9], lines[11] = "1,2", "1,oops,x", "1,2,", "1,1e99,x"
    data = read("\n".join(lines))
    assert len(data.train) == 56
    assert [row.where for row in data.rejected] == [f"data.csv:{n}" for n in (6, 8, 10, 12)]
    assert "'b' holds 'oops'" in data.rejected[1].reason


def test_an_open_quote_costs_the_lines_that_it_swallowed() -> None:
    lines = ["a,label"] + ["1,x"] * 100
    lines[50] = '1,"x'
    with pytest.raises(DataError, match="51 of 100"):
        read("\n".join(lines))


def test_a_text_feature_is_named() -> None:
    with pytest.raises(DataError, match=r"feature column 'colour'.*'red'.*--label-column 1"):
        read("a,colour,label\n1,red,x\n2,green,y\n")


def test_infers_regression() -> None:
    assert read("a,y\n1,0.5\n2,1\n").train.task_type == "regression"
    many = "a,y\n" + "".join(f"1,{i}\n" for i in range(60))
    assert read(many).train.task_type == "regression"
    assert read(many, task_type="classification").train.task_type == "classification"
    few = "a,y\n" + "".join(f"1,{i % 60}\n" for i in range(600))
    assert read(few).train.task_type == "classification"


def test_a_little_garbage_does_not_turn_a_quantity_into_classes() -> None:
    data = read("a,y\n" + "1,0.5\n" * 30 + "1,broken\n")
    assert data.train.task_type == "regression"
    assert data.rejected[0].where == "data.csv:32"


def test_text_in_a_table() -> None:
    content = 'id,text,label\n1,"a, ""b""\nsecond line",x\n2,c,y\n'
    train = read(content).train
    assert train.modality == "text"
    assert list(train.inputs) == ['a, "b"\nsecond line', "c"]
    assert read("body,label\nhello,x\nyou,y\n", text_column="body").train.modality == "text"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "an empty file"),
        ("\n\n\n", "at least one row"),
        ("a,b,label\n", "at least one row"),
        ("justone\n1\n2\n", "one column"),
        ("a,a,label\n1,2,3\n", "'a' more than once"),
        (b"\xff\xfea\x00,\x00b\x00", "UTF-16"),
        ("a,b\n".encode("utf-16-le"), "UTF-16"),
        (b"\xef\xbb\xbfa,label\n1,2\n", "byte order mark"),
        (b"a,label\n1,\x002\n", "NUL byte"),
        (b"a,label\n1,\xe92\n", "not UTF-8"),
        (b"\x80\x04\x95\x00\x00", "pickle"),
        (b"PK\x03\x04\x00\x00\x00", "zip archive"),
        (b"a,label\n1," + b"9" * (1 << 20) + b"\n", "longer than 1 MiB"),
    ],
)
def test_what_cannot_be_a_table_is_named(content: str | bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read(content)
    assert "\n" not in str(caught.value)


def test_a_column_may_be_called_like_a_file_format() -> None:
    assert read("PAR1,label\n1,2\n").train.feature_names == ("PAR1",)
