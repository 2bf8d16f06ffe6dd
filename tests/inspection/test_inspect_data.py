"""What data is described as, without decoding every picture or reading a large file to its end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edge_pslora.data.options import ReadOptions
from edge_pslora.data.read import read_dataset
from edge_pslora.errors import DataError, InputError
from edge_pslora.inspection import data_facts
from edge_pslora.inspection.beginnings import beginning
from edge_pslora.inspection.data_facts import inspect_data
from edge_pslora.inspection.facts import DataFacts, PartFacts
from edge_pslora.inspection.media import decode_some
from edge_pslora.inspection.source import inspect_source
from edge_pslora.models.options import ModelOptions

OPTIONS = ReadOptions()


def _table(path: Path, rows: int = 40) -> Path:
    lines = ["size,always,weight,kind"]
    for i in range(rows):
        weight = "?" if i % 4 == 0 else str(i / 2)
        lines.append(f"{i},7,{weight},{'odd' if i % 2 else 'even'}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_table(tmp_path: Path) -> None:
    path = _table(tmp_path / "t.csv")
    with path.open("a") as file:
        file.write("a,1,2,odd\n")
    facts = inspect_data(path, ReadOptions(label_column="kind"))
    assert (facts.format, facts.modality, facts.task_type) == (".csv", "table", "classification")
    assert facts.parts == {"train": PartFacts(40, {"even": 20, "odd": 20})}
    assert (facts.label, facts.text) == ("kind", None)
    assert (facts.features, facts.shape) == (("size", "always", "weight"), (3,))
    assert (facts.missing, facts.constant) == ({"weight": 10}, ("always",))
    assert facts.rejected == 1
    assert facts.rejected_first == (("t.csv:42", "column 'size' holds 'a', not a number"),)
    assert facts.complete
    assert facts.bytes == path.stat().st_size


def test_a_quantity_and_a_code_for_missing(tmp_path: Path) -> None:
    path = tmp_path / "q.tsv"
    path.write_text("a\tb\n" + "".join(f"{-9 if i == 3 else i}\t{i / 3}\n" for i in range(9)))
    facts = inspect_data(path, ReadOptions(missing=(-9.0,)))
    assert facts.task_type == "regression"
    assert facts.target_range == pytest.approx((0, 4 / 3, 8 / 3))
    assert facts.parts["train"].classes == {}
    assert facts.missing == {"a": 1}


def test_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((6, 5, 3), np.float32), y=[0, 1, 1, 1, 0, 2])
    facts = inspect_data(tmp_path / "a.npz", OPTIONS)
    assert (facts.modality, facts.shape, facts.label) == ("array", (5, 3), "y")
    assert list(facts.parts["train"].classes.items()) == [("1", 3), ("0", 2), ("2", 1)]


def _texts(path: Path, rows: int, label: str = "label") -> Path:
    path.parent.mkdir(exist_ok=True)
    rows_of = ({"text": f"text number {i}", label: ("a", "b")[i % 2]} for i in range(rows))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of))
    return path


def test_texts_in_parts(tmp_path: Path) -> None:
    _texts(tmp_path / "d" / "train.jsonl", 10, "mood")
    _texts(tmp_path / "d" / "test.jsonl", 4, "mood")
    facts = inspect_data(tmp_path / "d", ReadOptions(label_column="mood"))
    assert {name: part.rows for name, part in facts.parts.items()} == {"train": 10, "test": 4}
    assert (facts.label, facts.text, facts.features) == ("mood", "text", ())
    assert "a Hugging Face folder for text" in facts.fits


def test_of_a_large_file_whole_lines_of_the_beginning_are_read(tmp_path: Path) -> None:
    folder = _texts(tmp_path / "d" / "train.jsonl", 500).parent
    _texts(folder / "test.jsonl", 500)
    total = sum(file.stat().st_size for file in folder.iterdir())
    with beginning(folder, most=4000) as part:
        assert part.path != folder
        assert 3800 < part.bytes_read <= 4000
        assert part.bytes == total
        data = read_dataset(part.path)
        assert data.rejected == ()
        assert data.test is not None
        assert len(data.train) == len(data.test) > 40
        copies = part.path
    assert not copies.exists()
    with beginning(folder, most=total) as part:
        assert (part.path, part.bytes_read) == (folder, total)


def test_an_error_in_the_beginning_names_the_users_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("no json\n" * 900)
    monkeypatch.setattr(data_facts, "beginning", lambda p: beginning(p, most=1000))
    with pytest.raises(DataError, match="at most 10% unreadable rows") as caught:
        inspect_data(path, OPTIONS)
    assert caught.value.where == str(path)
    good = _table(tmp_path / "good.csv", 400)
    facts = inspect_data(good, OPTIONS)
    assert not facts.complete
    assert facts.bytes_read < 1000 < facts.bytes
    assert facts.to_dict()["complete"] is False


def _pictures(root: Path, count: int) -> Path:
    image = pytest.importorskip("PIL.Image")
    for i in range(count):
        folder = root / ("cat", "dog")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image.new("RGB", (8 + i, 10)).save(folder / f"{i}.png")
    return root


def test_of_pictures_headers_are_read_and_some_are_decoded(tmp_path: Path) -> None:
    root = _pictures(tmp_path / "p", 30)
    broken, named = root / "cat" / "0.png", root / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:45])  # the header is whole
    named.write_bytes(b"no picture")
    facts = inspect_data(root, OPTIONS)
    assert facts.format == "class folders (image)"
    assert facts.parts["train"].rows == 29
    assert facts.rejected_first == (("dog/1.png", "not an image"),)
    assert facts.sample is not None
    assert (facts.sample.checked, facts.sample.of, facts.sample.bad) == (29, 29, 1)
    assert facts.sample.first[0][0] == str(broken)
    assert facts.sample.sizes == ((10, 10), (37, 10))
    assert len(read_dataset(root).rejected) == 2  # a session would find both


def test_decoding_ends_with_its_time(tmp_path: Path) -> None:
    root = _pictures(tmp_path / "p", 6)
    sample = decode_some(sorted(root.rglob("*.png")), OPTIONS, seconds=0)
    assert (sample.checked, sample.of) == (1, 6)


def test_every_format_of_pictures_passes_by_its_first_bytes(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "kind").mkdir()
    suffixes = ("png", "jpg", "bmp", "gif", "webp", "tif", "ppm", "pgm")
    for suffix in suffixes:
        mode = "L" if suffix == "pgm" else "RGB"
        image.new(mode, (8, 8)).save(tmp_path / "kind" / f"a.{suffix}")
    data = read_dataset(tmp_path, ReadOptions(decode=False))
    assert len(data.train) == len(suffixes)
    assert data.digest == ""  # nothing to recognise a session by
    assert read_dataset(tmp_path).digest


def test_what_is_neither(tmp_path: Path) -> None:
    def find(path: Path) -> object:
        return inspect_source(str(path), read=OPTIONS, model_options=ModelOptions())

    with pytest.raises(DataError, match="nothing there"):
        find(tmp_path / "gone.csv")
    with pytest.raises(DataError, match="an empty folder"):
        find(tmp_path)
    (tmp_path / "workspace.json").write_text("{}")
    with pytest.raises(InputError, match="found a workspace; run: edge-pslora status") as caught:
        find(tmp_path)
    assert caught.value.exit_code == 4
    assert isinstance(find(_table(tmp_path / "t.csv")), DataFacts)
