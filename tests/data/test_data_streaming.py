"""Memory does not grow with the file: ten times the rows, the same anonymous memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_pslora.data import spool
from edge_pslora.data.read import ReadOptions, read_dataset
from edge_pslora.data.spool import Numbers, SpooledTexts, Texts, take_rows

ROOT = Path(__file__).resolve().parents[2]
SPOOL = 1 << 20
ATTEMPTS = 3
MANY = 80_000  # rows; a tenth of them in the small file
GROWTH = 10 << 20  # allowed; the large files hold 30 MB and more
# slow to write: half of the rows, which would take 14 MB and more; the peak's own noise stays, some 3 MB
HALF, HALF_GROWTH = {"d.csv", "d.jsonl", "d.txt"}, 7 << 20


def _cells() -> list[str]:
    """99 numbers for each of a thousand rows: to write others for every row takes longer than to read."""
    numbers = np.random.default_rng(0).random((1000, 99))
    return [",".join(f"{value:.3f}" for value in row) for row in numbers]


def _csv(path: Path, rows: int) -> None:
    cells = _cells()
    with path.open("w") as file:
        file.write(",".join(f"f{i}" for i in range(100)) + ",label\n")
        for row in range(rows):  # no two are equal
            file.write(f"{row / 8:.3f},{cells[row % 1000]},{'ab'[row % 2]}\n")


def _jsonl(path: Path, rows: int) -> None:
    with path.open("w") as file:
        for row in range(rows):
            file.write(f'{{"text": "{row} {"some words " * 70}", "label": "{"ab"[row % 2]}"}}\n')


def _npz(path: Path, rows: int) -> None:
    x = np.random.default_rng(0).random((rows, 100))
    np.savez(path, x=x, y=np.arange(rows) % 2)


def _npy(path: Path, rows: int) -> None:
    x = np.asfortranarray(np.random.default_rng(0).random((rows, 100)))
    np.save(path, x)
    np.save(path.with_name(path.stem + "_y.npy"), np.arange(rows) % 2)


def _txt(path: Path, rows: int) -> None:
    with path.open("w") as file:
        for row in range(rows):
            file.write(f"Sentence {row} has {'some more words ' * 50}and an end.\n\n")


def _parquet(path: Path, rows: int) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    x = np.random.default_rng(0).random((rows, 100), dtype=np.float32)
    columns = {f"f{i}": x[:, i] for i in range(100)} | {"label": np.arange(rows) % 2}
    # the footer, which pyarrow keeps whole, grows with the groups times the columns
    pq.write_table(pa.table(columns), path, row_group_size=4000)


def _recording(path: Path, rows: int) -> None:
    cells = _cells()
    with path.open("w") as file:
        file.write("t_ms," + ",".join(f"c{i}" for i in range(100)) + ",label\n")
        for row in range(rows):
            file.write(f"{20 * row},{row / 8:.3f},{cells[row % 1000]},{'ab'[row // 4000 % 2]}\n")


WRITERS: list[tuple[str, Callable[[Path, int], None]]] = [
    ("d.csv", _csv),
    ("d.jsonl", _jsonl),
    ("d.npz", _npz),
    ("d.npy", _npy),
    ("d.txt", _txt),
    ("d.parquet", _parquet),
]


def _measure(path: Path, *more: str) -> tuple[int, int]:
    child = str(Path(__file__).with_name("memory_child.py"))
    done = subprocess.run(
        [sys.executable, child, str(path), str(SPOOL), *more],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        cwd=ROOT,
    )
    grown, rows = done.stdout.split()
    return int(grown), int(rows)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(("name", "write"), WRITERS, ids=[name for name, _ in WRITERS])
def test_ten_times_the_rows_take_the_same_memory(tmp_path, name, write):
    share = 2 if name in HALF else 1
    paths = {}
    for rows in (MANY // 10 // share, MANY // share):
        folder = tmp_path / str(rows)
        folder.mkdir()
        write(folder / name, rows)
        paths[folder / name] = rows
    _require_growth_below(HALF_GROWTH if name in HALF else GROWTH, paths)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_ten_times_the_readings_take_the_same_memory(tmp_path):
    paths = {}
    for rows in (MANY // 20, MANY // 2):
        path = tmp_path / f"{rows}.csv"
        _recording(path, rows)
        paths[path] = rows // 50
    _require_growth_below(HALF_GROWTH, paths, "windows")


def _require_growth_below(limit: int, paths: dict[Path, int], *more: str) -> None:
    """paths: the small file and the large one, and how many samples each holds.

    A busy machine adds some megabytes to a peak, now and then; a reader that keeps the file adds it
    every time.
    """
    taken = []
    for _ in range(ATTEMPTS):
        sizes = []
        for path, samples in paths.items():
            size, found = _measure(path, *more)
            assert found >= samples
            sizes.append(size)
        taken.append(sizes)
        if sizes[1] - sizes[0] < limit:
            return
    pytest.fail(f"bytes taken, small and large file, of {ATTEMPTS} attempts: {taken}")


@pytest.fixture
def tiny_spool(monkeypatch):
    monkeypatch.setattr(spool, "SPOOL_BYTES", 100)
    monkeypatch.setattr(spool, "_BLOCK", 64)


def test_what_is_spooled_is_read_back(tiny_spool):
    texts, numbers = Texts(), Numbers()
    written = [f"{'é' * (i % 7)}{i}\n" for i in range(200)]
    for i, text in enumerate(written):
        texts.append(text)
        numbers.extend([i, -i])
    found = texts.sequence()
    assert isinstance(found, SpooledTexts)
    assert list(found) == written
    assert found[-1] == written[-1]
    assert found[3:5] == written[3:5]
    with pytest.raises(IndexError):
        found[200]
    indices = np.array([7, 7, 0, 199])
    assert list(found.take(indices).take(np.array([3, 0]))) == [written[199], written[7]]
    rows = numbers.rows(2)
    np.testing.assert_array_equal(rows, np.stack([np.arange(200), -np.arange(200)], 1))
    np.testing.assert_array_equal(take_rows(rows, indices), rows[indices])
    assert take_rows(rows, np.arange(200)) is rows


@pytest.mark.parametrize(("name", "write"), WRITERS, ids=[name for name, _ in WRITERS])
def test_spooled_or_not_the_data_is_the_same(tmp_path, monkeypatch, name, write):
    write(tmp_path / name, 30)
    path = tmp_path / name
    small = read_dataset(path)
    monkeypatch.setattr(spool, "SPOOL_BYTES", 100)
    monkeypatch.setattr(spool, "_BLOCK", 64)
    large = read_dataset(path)
    assert large.digest == small.digest
    assert large.notes == small.notes
    assert list(large.train.targets) == list(small.train.targets)


def test_a_full_temporary_folder_is_named(tmp_path, monkeypatch, tiny_spool):
    from edge_pslora.errors import EdgePsloraError

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    _csv(tmp_path / "d.csv", 30)
    with pytest.raises(EdgePsloraError, match=r"temporary folder .*TMPDIR") as caught:
        read_dataset(tmp_path / "d.csv", ReadOptions())
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
