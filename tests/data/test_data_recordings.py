"""Sensor recordings: resampling, gaps, labels, groups, units of time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_pslora.data.read import ReadOptions, read_dataset
from edge_pslora.data.types import Dataset
from edge_pslora.errors import DataError, UsageError


def write(
    path: Path, times: Sequence[Any], labels: Sequence[str] | None = None, name: str = "timestamp"
) -> Path:
    """Channel `up` is the row's number, `down` its negative."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"up,down,{name}" + (",label" if labels is not None else "")]
    for i, time in enumerate(times):
        lines.append(f"{i},{-i},{time}" + (f",{labels[i]}" if labels is not None else ""))
    path.write_text("\n".join(lines) + "\n")
    return path


def windows(path: Path, window: float = 1.0, rate: float | None = 10, **more: Any) -> Dataset:
    return read_dataset(path, ReadOptions(window_seconds=window, rate_hz=rate, **more))


def test_a_recording_at_the_wanted_rate_is_cut_and_kept(tmp_path):
    path = write(tmp_path / "d.csv", range(0, 5000, 100), ["x"] * 50)
    train = windows(path).train
    assert (train.modality, train.task_type) == ("array", "classification")
    assert train.feature_names == ("up", "down")
    assert train.inputs.dtype == np.float32
    expected = np.arange(50).reshape(5, 10)
    np.testing.assert_allclose(train.inputs, np.stack([expected, -expected], -1), atol=1e-5)
    overlapping = windows(path, hop_seconds=0.5)
    np.testing.assert_allclose(overlapping.train.inputs[1, :, 0], np.arange(5, 15), atol=1e-5)
    assert len(overlapping.train) == 9
    assert any("overlap" in note for note in overlapping.notes)


def test_resampling_is_linear_interpolation(tmp_path):
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.integers(20, 120, 200))
    train = windows(write(tmp_path / "d.csv", times, ["x"] * 200), rate=16).train
    at = np.arange(len(train) * 16) / 16
    expected = np.interp(at, (times - times[0]) / 1000, np.arange(200))
    np.testing.assert_allclose(train.inputs[..., 0].ravel(), expected, rtol=1e-5, atol=1e-4)


def test_gaps_longer_than_a_window_are_not_bridged(tmp_path):
    times = [*range(0, 2500, 100), *range(9000, 11500, 100), *range(300, 2800, 100)]
    data = windows(write(tmp_path / "d.csv", times, ["x"] * 75))
    assert len(data.train) == 6
    assert "in 3 recordings" in data.notes[0]
    firsts = data.train.inputs[:, 0, 0]
    np.testing.assert_allclose(firsts, [0, 10, 25, 35, 50, 60], atol=1e-4)


def test_the_label_of_most_readings_or_none(tmp_path):
    labels = ["x"] * 10 + ["x"] * 8 + ["y"] * 2 + ["x"] * 7 + ["y"] * 3 + ["y"] * 10
    data = windows(write(tmp_path / "d.csv", range(0, 4000, 100), labels))
    assert data.train.targets.tolist() == ["x", "x", "y"]
    assert "1 windows set aside: less than 80 % of one label" in data.notes
    assert not data.rejected


def test_regression_takes_the_mean(tmp_path):
    labels = [str(i / 4) for i in range(20)]
    path = write(tmp_path / "d.csv", range(0, 2000, 100), labels)
    train = windows(path, task_type="regression").train
    np.testing.assert_allclose(train.targets, [4.5 / 4, 14.5 / 4])


def test_labels_from_class_folders_and_parts(tmp_path):
    for part, count in (("train", 3), ("valid", 1)):
        for label in ("run", "walk"):
            for i in range(count):
                write(tmp_path / "a" / part / label / f"{i}.csv", range(0, 2000, 100))
    data = windows(tmp_path / "a")
    assert sorted(set(data.train.targets)) == ["run", "walk"]
    assert len(data.train) == 12
    assert data.valid is not None
    assert len(data.valid) == 4
    assert "label from the folders' names" in data.notes[0]
    # a column says more than the folder's name, which may be a person's
    write(tmp_path / "b" / "anna" / "0.csv", range(0, 2000, 100), ["sit"] * 20)
    assert set(windows(tmp_path / "b").train.targets) == {"sit"}


def test_groups_never_share_a_window(tmp_path):
    lines = ["t,v,who,label"]
    for i in range(40):
        lines.append(f"{i * 100},{i},{'ab'[i % 2]},x")
    path = tmp_path / "d.csv"
    path.write_text("\n".join(lines) + "\n")
    train = windows(path, group_column="who", time_unit="ms").train
    assert train.feature_names == ("v",)
    firsts = train.inputs[:, 0, 0]
    # each person's readings by themselves: even and odd numbers, interpolated
    np.testing.assert_allclose(firsts, [0, 10, 20, 1, 11, 21], atol=1e-4)


UNITS = [
    ("timestamp", np.arange(40) * 100 + 1_600_000_000_000, "ms"),
    ("timestamp", np.arange(40) * 0.1 + 1_600_000_000, "s"),
    ("timestamp", np.arange(40) * 100_000 + 1_600_000_000_000_000, "us"),
    ("timestamp", np.arange(40) * 100_000_000 + 1_600_000_000_000_000_000, "ns"),
    ("t", np.arange(40) * 0.1, "s"),
    ("t", np.arange(40) * 100, "ms"),
    ("t", np.arange(40) * 100_000, "us"),
    ("t_ms", np.arange(40) * 100, "ms"),
    ("time_us", np.arange(40) * 100_000, "us"),
    ("time [ms]", np.arange(40) * 100, "ms"),
    ("seconds", np.arange(40) * 0.1, "s"),
]


@pytest.mark.parametrize(("name", "times", "unit"), UNITS)
def test_the_unit_of_time_is_guessed_and_shown(tmp_path, name, times, unit):
    path = write(tmp_path / "d.csv", times.tolist(), ["x"] * 40, name)
    for rate in (10, None):
        data = windows(path, rate=rate)
        assert f"time in {unit} from '{name}'" in data.notes[0]
        assert data.train.inputs.shape == (4, 10, 2)


def test_dates_as_time(tmp_path):
    times = [f"2026-01-02T03:04:{i / 10:06.3f}" for i in range(40)]
    data = windows(write(tmp_path / "d.csv", times, ["x"] * 40), rate=None)
    assert data.train.inputs.shape == (4, 10, 2)
    assert "date and time" in data.notes[0]


def test_the_unit_can_be_given(tmp_path):
    path = write(tmp_path / "d.csv", range(40), ["x"] * 40, "t")
    assert windows(path, window=10, rate=1, time_unit="s").train.inputs.shape == (4, 10, 2)


def test_rows_that_cannot_be_used_are_set_aside(tmp_path):
    path = write(tmp_path / "d.csv", range(0, 4000, 100), ["x"] * 40)
    lines = path.read_text().split("\n")
    lines[5] = "oops,1,400,x"
    lines[9] = "1,1,soon,x"
    lines[11] = "1,1,1000"
    path.write_text("\n".join(lines))
    data = windows(path)
    assert [row.where for row in data.rejected] == ["d.csv:6", "d.csv:10", "d.csv:12"]
    assert [row.reason for row in data.rejected] == [
        "no number in channel 'up'",
        "no time",
        "3 columns, not 4",
    ]
    np.testing.assert_allclose(data.train.inputs[0, :, 0], np.arange(10), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 9.0}, r"recordings of 9 s or longer.*at most 3\.9 s"),
        ({"time_column": "when"}, "--time-column"),
        ({"label_column": "when"}, "--label-column"),
        ({"group_column": "when"}, "--group-column"),
        ({"feature_columns": ("timestamp",)}, "--feature-columns"),
        ({"ignore_columns": ("up", "down")}, "channels beside"),
    ],
)
def test_recordings_that_do_not_fit(tmp_path, options, words):
    path = write(tmp_path / "d.csv", range(0, 4000, 100), ["x"] * 40)
    with pytest.raises(DataError, match=words) as caught:
        windows(path, **options)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_recordings(tmp_path):
    with pytest.raises(DataError, match="a time column"):
        windows(write(tmp_path / "a.csv", range(40), ["x"] * 40, "weight"))
    with pytest.raises(DataError, match="a label column, or a folder for each class"):
        windows(write(tmp_path / "b.csv", range(40)))
    (tmp_path / "c.jsonl").write_text('{"text": "a", "label": "b"}\n')
    with pytest.raises(DataError, match="recordings for --window"):
        windows(tmp_path / "c.jsonl")
    write(tmp_path / "f" / "a.csv", range(0, 4000, 100), ["x"] * 40)
    (tmp_path / "f" / "b.csv").write_text("other,timestamp,label\n1,2,x\n")
    with pytest.raises(
        DataError, match=r"b\.csv: expected the channels of the first file, up, down"
    ):
        windows(tmp_path / "f")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="recordings, one"):
        windows(tmp_path / "empty")


def test_options_that_make_no_sense(tmp_path):
    for bad in (
        {"hop_seconds": 1.0},
        {"rate_hz": 5.0},
        {"time_column": "t"},
        {"window_seconds": 0.0},
        {"window_seconds": 1.0, "rate_hz": float("inf")},
    ):
        with pytest.raises(UsageError):
            ReadOptions(**bad)
    with pytest.raises(UsageError, match="--window"):
        windows(write(tmp_path / "d.csv", range(0, 4000, 100), ["x"] * 40), window=0.1)
