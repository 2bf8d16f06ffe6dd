"""Folders with train, valid and test, and the choice of a reader by the path's kind and name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edge_pslora.data.read import ReadOptions, read_dataset
from edge_pslora.data.source import open_input
from edge_pslora.errors import DataError, UsageError


def jsonl(path: Path, *labels: object) -> Path:
    rows = [json.dumps({"text": f"text {i}", "label": label}) for i, label in enumerate(labels)]
    path.write_text("\n".join(rows))
    return path


def test_the_parts_stay_apart(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", "a", "b")
    jsonl(tmp_path / "test.jsonl", "a", "b", "c")
    data = read_dataset(tmp_path)
    assert (len(data.train), data.valid, len(data.test or ())) == (2, None, 3)
    without = read_dataset(tmp_path / "train.jsonl")
    jsonl(tmp_path / "valid.jsonl", "b")
    both = read_dataset(tmp_path)
    assert both.valid is not None
    assert both.valid.targets.tolist() == ["b"]
    assert len({data.digest, without.digest, both.digest}) == 3


def test_tables_in_parts(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a,b,label\n1,2,0.5\n3,4,1.5\n")
    (tmp_path / "test.csv").write_text("a,b,label\n1,2,1\n")
    data = read_dataset(tmp_path)
    assert data.test is not None
    assert data.test.task_type == "regression"
    (tmp_path / "test.csv").write_text("b,a,label\n1,2,1\n")
    with pytest.raises(DataError, match="the columns of the training part"):
        read_dataset(tmp_path)
    (tmp_path / "test.csv").write_text("text,label\nhello,x\n")
    with pytest.raises(DataError, match="numbers as labels"):
        read_dataset(tmp_path)


def test_a_part_of_another_kind_is_refused(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", "a", "b")
    (tmp_path / "valid.csv").write_text("a,label\n1,b\n")
    with pytest.raises(DataError, match="the modality of the training part, text; found table"):
        read_dataset(tmp_path)


def test_rejected_rows_of_all_parts_are_told(tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        with jsonl(tmp_path / f"{name}.jsonl", *["a", "b"] * 10).open("a") as stream:
            stream.write("\n{broken\n")
    where = [row.where for row in read_dataset(tmp_path).rejected]
    assert where == ["train.jsonl:21", "valid.jsonl:21", "test.jsonl:21"]


def test_unclear_folders_are_explained(tmp_path: Path) -> None:
    jsonl(tmp_path / "test.jsonl", "a")
    with pytest.raises(DataError, match=r"train\.jsonl .* found test\.jsonl"):
        read_dataset(tmp_path)
    jsonl(tmp_path / "train.jsonl", "a")
    (tmp_path / "train.csv").write_text("a,label\n1,2\n")
    with pytest.raises(DataError, match=r"one file for train; found train\.jsonl, train\.csv"):
        read_dataset(tmp_path)


def test_links_and_pipes_in_a_folder(tmp_path: Path) -> None:
    outside = jsonl(tmp_path / "outside.jsonl", "a", "b")
    root = tmp_path / "data"
    root.mkdir()
    train = root / "train.jsonl"
    train.symlink_to(outside)
    with pytest.raises(DataError, match="a symbolic link that leaves it"):
        read_dataset(root)
    train.unlink()
    train.symlink_to(root / "gone")
    with pytest.raises(DataError, match="a symbolic link to nothing"):
        read_dataset(root)
    train.unlink()
    os.mkfifo(train)
    with pytest.raises(DataError, match="named pipe"):
        read_dataset(root)
    train.unlink()
    train.mkdir()
    with pytest.raises(DataError, match="found a folder"):
        read_dataset(root)
    train.rmdir()
    jsonl(root / "real.jsonl", "a", "b")
    train.symlink_to("real.jsonl")
    assert len(read_dataset(root).train) == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("m.pt", "pickle: never loaded"),
        ("m.PTH", "pickle: never loaded"),
        ("m.pkl", "pickle: never loaded"),
        ("m.bin", "pickle: never loaded"),
        ("a.npy", "numpy.savez"),
        ("d.zip", "unpack it first"),
        ("d.json", r"\.jsonl"),
        ("d.parquet", "a Python pickle"),
        ("d.xlsx", "export it as .csv"),
        ("d.qqq", "a .qqq file"),
        ("data", "without a suffix"),
    ],
)
def test_unknown_and_refused_kinds(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(DataError, match=words):
        read_dataset(tmp_path / name)


@pytest.mark.parametrize("name", ["d.csv", "d.jsonl", "d.npz", "d.tsv", "d.pt", "d"])
def test_paths_that_are_no_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(DataError, match="nothing there"):
        read_dataset(path)
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match="a symbolic link to nothing"):
        read_dataset(path)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(DataError, match="readable file"):
        read_dataset(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"named pipe|without a suffix|never loaded"):
        read_dataset(path)


@pytest.mark.parametrize("name", ["a\0b.csv", "x" * 300 + ".csv", "\ud800.csv"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        read_dataset(tmp_path / name)
    assert str(caught.value).isprintable()


def test_odd_names_are_read_and_shown_harmlessly(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"a b\n\x1b[31m\xff.csv")
    path.write_text("a,label\n" + "1,x\n" * 20 + "y,x\n")
    data = read_dataset(path)
    assert data.source.isprintable()
    assert data.rejected[0].where == "a b\\n\\x1b[31m\\udcff.csv:22"


def test_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "d.jsonl", "a")

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    # Tests may run as root, whom no mode bits stop.
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DataError, match="no permission"):
        read_dataset(path)


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", "a", "b")
    with pytest.raises(DataError, match="it changed"), open_input(path):
        os.truncate(path, 20)
    other = jsonl(tmp_path / "other.jsonl", "a", "b")
    with pytest.raises(DataError, match="it changed"), open_input(path):
        other.replace(path)
    with pytest.raises(DataError, match="nothing there"), open_input(path):
        path.unlink()


@pytest.mark.parametrize(
    "options",
    [
        {"task_type": "ranking"},
        {"missing": (float("nan"),)},
        {"max_bad_fraction": 1.5},
        {"min_classes": 0},
    ],
)
def test_impossible_options(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        ReadOptions(**options)  # type: ignore[arg-type]
