"""Data that does not fit the earlier sessions, for every format: one line, exit code 4, nothing changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_pslora import adapt
from edge_pslora.config import AdaptConfig, TrainConfig
from edge_pslora.data.options import ReadOptions
from tests.pipeline import pipeline_kit as kit

pytestmark = pytest.mark.usefixtures("kept_graphs")  # it is not about tracing

QUICK = AdaptConfig(train=TrainConfig(epochs=1))
WINDOW = ("--window", "1s", "--rate", 10)


def _parquet(path: Path, x: np.ndarray, y: Any) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = {f"f{i}": x[:, i] for i in range(x.shape[1])} | {"label": list(y)}
    pq.write_table(pa.table(columns), path)
    return path


def _npy(path: Path, x: np.ndarray, y: Any) -> Path:
    np.save(path, x)
    np.save(path.with_name(path.stem + "_y.npy"), np.asarray(y))
    return path


def _tsv(path: Path, x: np.ndarray, y: Any) -> Path:
    lines = ["\t".join([*map(str, row), str(label)]) for row, label in zip(x, y, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def _npz(path: Path, x: np.ndarray, y: Any) -> Path:
    return kit.write_npz(path, x, np.asarray(y))


WRITERS: dict[str, Callable[[Path, np.ndarray, Any], Path]] = {
    "d.npz": _npz,
    "d.npy": _npy,
    "d.csv": kit.write_csv,
    "d.tsv": _tsv,
    "d.parquet": _parquet,
}


def _write_recording(path: Path, channels: int, labels: tuple[str, ...], seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    lines = ["timestamp," + ",".join(f"c{i}" for i in range(channels)) + ",label"]
    for i in range(1200):
        label = labels[i // 100 % len(labels)]
        values = rng.normal(labels.index(label), 0.2, channels)
        lines.append(f"{100 * i}," + ",".join(f"{v:.3f}" for v in values) + f",{label}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def text_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    data = kit.write_jsonl(folder / "d.jsonl", ("sport", "food"))
    assert adapt(data, model="auto", workspace=folder / "w", config=QUICK).promoted
    return folder / "w"


@pytest.fixture(scope="module")
def sensor_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sensors")
    data = _write_recording(folder / "d.csv", 3, ("run", "sit"))
    read = ReadOptions(window_seconds=1, rate_hz=10)
    assert adapt(data, model="auto", workspace=folder / "w", config=QUICK, read=read).promoted
    return folder / "w"


def _refused(run: Callable[..., kit.Outcome], workspace: Path, *arguments: Any) -> str:
    before = kit.snapshot(workspace)
    done = run("adapt", *arguments, "--workspace", workspace)
    assert done.code == 4, done
    assert done.err == ""
    assert "\n" not in done.facts["message"]
    assert kit.snapshot(workspace) == before
    return str(done.facts["message"])


@pytest.mark.parametrize("name", WRITERS)
def test_labels_that_changed_their_type(two_sessions, run, tmp_path, name):
    """Numbers before, names or quantities now."""
    x, y = kit.digits((0, 1), 40)
    x, write = x.reshape(len(x), -1), WRITERS[name]
    message = _refused(run, two_sessions, write(tmp_path / name, x, [f"kind {v}" for v in y]))
    assert "labels that are numbers" in message
    assert "--label-column" in message
    message = _refused(run, two_sessions, write(tmp_path / name, x, [float(v) + 0.25 for v in y]))
    assert "fractions" in message or "number" in message


@pytest.mark.parametrize("name", WRITERS)
def test_another_number_of_features(two_sessions, run, tmp_path, name):
    x, y = kit.digits((0, 1), 40)
    data = WRITERS[name](tmp_path / name, x.reshape(len(x), -1)[:, :9], y)
    assert "64" in _refused(run, two_sessions, data)


def test_texts_that_do_not_fit(text_workspace, run, tmp_path):
    def jsonl(rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / "d.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
        return path

    texts = [f"the {word}" for word in kit.TOPICS["sport"].split()[:20]]
    numbers = jsonl([{"text": t, "label": i % 2} for i, t in enumerate(texts)])
    assert "labels that are names" in _refused(run, text_workspace, numbers)
    assert "'label'" in _refused(run, text_workspace, jsonl([{"text": t} for t in texts]))
    several = jsonl([{"text": t, "label": ["sport", "food"]} for t in texts])
    _refused(run, text_workspace, several)
    (tmp_path / "prose.txt").write_text("Just some sentences. Nothing else is here.\n" * 5)
    _refused(run, text_workspace, tmp_path / "prose.txt")
    (tmp_path / "prose.md").write_text("Just some sentences. Nothing else is here.\n" * 5)
    _refused(run, text_workspace, tmp_path / "prose.md")
    _refused(run, text_workspace, tmp_path / "prose.md", "--task-type", "language")


def test_recordings_that_do_not_fit(sensor_workspace, run, tmp_path):
    labels = ("run", "sit")
    good = _write_recording(tmp_path / "good.csv", 3, labels, seed=1)
    more = _write_recording(tmp_path / "more.csv", 4, labels)
    assert "extra column 'c3'" in _refused(run, sensor_workspace, more, *WINDOW)
    _refused(run, sensor_workspace, good, "--window", "2s", "--rate", 10)
    _refused(run, sensor_workspace, good, "--window", "1s", "--rate", 20)
    assert "extra column 'c3'" in _refused(run, sensor_workspace, more)  # the windows are known
    assert run("eval", sensor_workspace, good).code == 0
    numbers = _write_recording(tmp_path / "numbers.csv", 3, ("0", "1"))
    assert "labels that are names" in _refused(run, sensor_workspace, numbers, *WINDOW)


def test_channels_in_another_order_are_the_same_channels(sensor_workspace, run, tmp_path):
    good = _write_recording(tmp_path / "a.csv", 3, ("run", "sit"), seed=1)
    cells = [line.split(",") for line in good.read_text().splitlines()]
    swapped = "\n".join(",".join([row[0], row[3], row[1], row[2], row[4]]) for row in cells)
    (tmp_path / "b.csv").write_text(swapped + "\n")
    figures = [
        run("eval", sensor_workspace, tmp_path / name, *WINDOW).facts for name in ("a.csv", "b.csv")
    ]
    assert figures[0] == figures[1]
    assert figures[0]["accuracy"] > 0.9


def test_what_was_understood_is_shown_and_duplicates_are_counted(run, tmp_path):
    x, y = kit.digits((0, 1), 60)
    x = np.concatenate([x.reshape(len(x), -1)[:, :20]] * 2)
    data = kit.write_csv(tmp_path / "d.csv", np.round(x, 3), [*y, *y])
    flags = ("--model", "auto", "--epochs", 1, "--workspace", tmp_path / "w")
    done = run("adapt", data, *flags)
    assert done.code == 0, done
    notes = "\n".join(done.facts["notes"])
    assert "20 feature columns (f0, f1, f2, f3, f4, f5, and 14 more), label in 'label'" in notes
    assert "2 classes" in notes
    assert "duplicates left out of the training part" in notes
    shutil.rmtree(tmp_path / "w")
    kept = run("adapt", data, *flags, "--keep-duplicates")
    assert kept.code == 0, kept
    assert kept.facts["samples"] + kept.facts["holdout_samples"] == 2 * len(y)
    assert kept.facts["samples"] > done.facts["samples"]


def test_no_sample_is_kept_on_request(run, tmp_path):
    x, y = kit.digits((0, 1), 60)
    data = kit.write_csv(tmp_path / "d.csv", x.reshape(len(x), -1)[:, :20], y)
    data.write_text(data.read_text() + "secret," * 20 + "1\n")
    flags = ("--model", "auto", "--epochs", 1, "--workspace", tmp_path / "w", "--no-keep-samples")
    assert run("adapt", data, *flags, "--anchor-budget", "1MB").code == 2
    done = run("adapt", data, *flags)
    assert done.code == 0, done
    folder = tmp_path / "w" / "generations" / "000001"
    assert done.facts["anchor_samples"] == 0
    assert not (folder / "anchor.safetensors").exists()
    assert (folder / "rejected.jsonl").read_text().count("\n") == 1
    for path in (tmp_path / "w").rglob("*"):
        assert path.is_dir() or b"secret" not in path.read_bytes(), path


def test_the_help_names_every_format(capsys):
    from edge_pslora.cli.main import main
    from edge_pslora.data.files import READERS

    for command in ("adapt", "eval"):
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out
        for word in (*READERS, ".wav", "images", "sounds", "recordings", "--window", "plain text"):
            assert word in " ".join(text.replace("│", " ").split()), word
