"""Plain text: passages, and what is prose and what a table."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_pslora.data.prose import looks_like_prose, passages
from edge_pslora.data.read import ReadOptions, read_dataset
from edge_pslora.errors import DataError

WORDS = st.lists(st.text("abcé.!?", min_size=1, max_size=30), max_size=60).map(" ".join)


@settings(max_examples=80, deadline=None)
@given(paragraphs=st.lists(WORDS, max_size=6), limit=st.integers(20, 90))
def test_passages_keep_every_letter_in_order(paragraphs: list[str], limit: int) -> None:
    found = list(passages(paragraphs, limit))
    assert all(0 < len(p) <= limit for p in found if p.strip())
    assert "".join("".join(found).split()) == "".join("".join(paragraphs).split())


def test_passages_end_where_sentences_end() -> None:
    text = "One two three. Four five six! Seven eight nine? Ten."
    assert list(passages([text], 30)) == ["One two three. Four five six!", "Seven eight nine? Ten."]
    assert list(passages(["aaa", "bbb", "c" * 28], 30)) == ["aaa\nbbb", "c" * 28]
    assert list(passages(["x" * 70], 30)) == ["x" * 30, "x" * 30, "x" * 10]


@pytest.mark.parametrize(
    ("content", "prose"),
    [
        ("It was a dark night, and it rained.\nNobody came.\n", True),
        ("# Title\n\nSome words, some more, and others.\n", True),
        ("One line of text, with a comma", True),
        ("1,2,a\n3,4,b\n", False),
        ("1\t2\tsome label\n3\t4\tother label\n", False),
        ("text,label\nthe first text,x\nthe second text,y\n", False),
        ("1\n2\n3\n", False),
        ("5.1,3.5,1.4,0.2,setosa kind\n4.9,3.0,1.4,0.2\n5.0,3.1,1.2,0.2,setosa kind\n", False),
    ],
)
def test_what_is_prose(content: str, prose: bool) -> None:
    assert looks_like_prose(content.encode()) == prose


STORY = "First part. It is short.\n\nSecond part, which goes\nover two lines.\n"


def test_text_files(tmp_path: Path) -> None:
    for name in ("d.txt", "d.md"):
        (tmp_path / name).write_text(STORY)
        data = read_dataset(tmp_path / name, ReadOptions(passage_characters=40))
        assert data.train.task_type == "language"
        assert list(data.train.inputs) == [
            "First part. It is short.",
            "Second part, which goes over two lines.",
        ]
        assert "2 passages of at most 40 characters" in data.notes[0]
    (tmp_path / "t.txt").write_text("1,2,a\n3,4,b\n")
    assert read_dataset(tmp_path / "t.txt").train.modality == "table"
    language = read_dataset(tmp_path / "t.txt", ReadOptions(task_type="language"))
    assert list(language.train.inputs) == ["1,2,a 3,4,b"]
    # an earlier session's kind of task is not given up because the file is another
    with pytest.raises(DataError):
        read_dataset(tmp_path / "d.txt", ReadOptions(task_type="classification"))


def test_folders_of_text(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    (folder / "more").mkdir(parents=True)
    (folder / "a.txt").write_text(STORY)
    (folder / "b.md").write_text("Another file.\n")
    options = ReadOptions(passage_characters=40)
    assert len(read_dataset(folder, options).train) == 3
    (folder / "more" / "c.txt").write_text("Further below.\n")
    with pytest.raises(DataError):
        read_dataset(folder, options)
    asked = ReadOptions(passage_characters=40, task_type="language")
    data = read_dataset(folder, asked)
    assert data.train.inputs[-1] == "Further below."
    assert "3 files of plain text" in data.notes[0]


def test_parts_as_text_files(tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(f"The {name} part has words.\n")
    data = read_dataset(tmp_path)
    assert data.valid is not None
    assert data.test is not None
    assert [p.inputs[0].split()[1] for p in (data.train, data.valid, data.test)] == [
        "train",
        "valid",
        "test",
    ]
    assert {p.task_type for p in (data.train, data.valid, data.test)} == {"language"}
