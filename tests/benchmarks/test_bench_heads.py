"""The comparison of heads: streams of growing classes, and methods that fit their family."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import blobs, tiny_model

from benchmarks import heads
from benchmarks.class_streams import CALTECH_TASKS, caltech, cifar10
from benchmarks.heads import HEADS, STREAMS, HeadStream, head_config, head_methods, main
from benchmarks.heads_frozen import CHOICES, frozen_runs
from benchmarks.places import EXAMPLES
from benchmarks.stream_loaders import importable
from edge_pslora.compare.stream import Part, Stream, make_stream
from edge_pslora.data.types import Samples
from edge_pslora.models.user_module import build_module
from edge_pslora.models.weights import write_weights


def _pictures(folder: Path, count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        pixels = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for i in range(CALTECH_TASKS + 1):
        _pictures(tmp_path / "caltech101" / f"class {i:02d}", 3, i)
    for part, count in (("train", 3), ("test", 2)):
        for i in range(10):
            _pictures(tmp_path / "cifar10" / part / f"kind {i}", count, 100 + i + 50 * count)
    for name, kind in (("caltech101-64.tar", "caltech101"), ("cifar10-jpg.tar.xz", "cifar10")):
        with tarfile.open(tmp_path / name, "w:xz" if name.endswith("xz") else "w") as tar:
            tar.add(tmp_path / kind, kind)
    folder = tmp_path / "mobilenet_v1_1.0_224"
    folder.mkdir()
    with importable(EXAMPLES):
        write_weights(build_module("mobilenet_v1:mobilenet_v1"), folder / "model.safetensors")
    monkeypatch.setenv("EDGE_PSLORA_DATA", str(tmp_path))
    monkeypatch.setenv("EDGE_PSLORA_MODELS", str(tmp_path))
    return tmp_path


def _labels(stream: Stream, part: str) -> list[set[str]]:
    return [set(getattr(task, part).targets.astype(str).tolist()) for task in stream.tasks]


@pytest.mark.parametrize(("load", "tasks", "classes"), [(caltech, 10, 11), (cifar10, 5, 10)])
def test_every_class_comes_in_one_task_and_is_tested_with_other_pictures(
    archives: Path, load: heads.Loader, tasks: int, classes: int
) -> None:
    orders = []
    for number, seed in enumerate((0, 1)):
        base = archives / f"base{number}"
        base.mkdir()
        stream = load(seed, base, cache=archives / "cache")  # type: ignore[call-arg]
        train, test = _labels(stream, "train"), _labels(stream, "test")
        assert train == test
        assert len(train) == tasks
        assert sum(len(labels) for labels in train) == len(set.union(*train)) == classes
        orders.append(train)
        shape = stream.tasks[0].train.inputs.batch(np.array([0]))["pixel_values"].shape
        assert shape[-2:] == (64, 64)
    assert orders[0] != orders[1]


def _blobs() -> Stream:
    parts = []
    for group in (("a", "b"), ("c", "d")):
        samples = [
            Samples("array", "classification", *blobs(group, n=20, seed=seed)) for seed in (1, 2)
        ]
        parts.append(Part("-".join(group), *samples))
    return make_stream("blobs", "class-incremental", parts, tiny_model)


def test_only_texts_have_names_as_classes() -> None:
    for name, stream in STREAMS.items():
        keys = [method.key for method in head_methods(stream, list(HEADS))]
        assert ("label-text" in keys) == (name == "text")
        assert len(keys) == len(HEADS) - (name != "text")
        assert head_config(stream).train.epochs == stream.epochs


def test_on_frozen_features_every_choice_of_ridge_has_a_run() -> None:
    runs = frozen_runs(_blobs(), 0)
    assert [run.method for run in runs] == [f"frozen, {name}" for name in CHOICES]
    assert all(run.learning is not None and run.learning > 0.9 for run in runs)


def test_the_table_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _blobs()
    monkeypatch.setitem(STREAMS, "text", HeadStream(lambda seed, base, limit: stream, 1))
    keys = ["--heads", "frozen", "analytic", "linear"]
    assert main(["--streams", "text", *keys, "--name", "trial"], out=tmp_path) == 0
    content = json.loads((tmp_path / "trial.json").read_text())
    figures = {row["figure"] for row in content["rows"]}
    assert "text: linear, protected: average accuracy" in figures
    assert len(content["runs"]) == len(CHOICES) + 2
    assert all(row["target"] is None for row in content["rows"])
