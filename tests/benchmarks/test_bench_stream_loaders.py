"""The streams through the product's readers: small stand-ins always, the shared data where it is."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.places import EXAMPLES, data_path
from benchmarks.stream_loaders import HOSPITALS, PACS_DOMAINS, heart, importable, pacs
from edge_pslora.compare.methods import METHODS
from edge_pslora.compare.run import run
from edge_pslora.compare.stream import Stream
from edge_pslora.config import AdaptConfig
from edge_pslora.errors import UsageError
from edge_pslora.models.user_module import build_module
from edge_pslora.models.weights import write_weights


def _shared_tables() -> bool:
    try:
        return bool(data_path("tables/heart_processed.va.data"))
    except UsageError:
        return False


def _pictures(folder: Path, value: int, count: int = 4) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(value)
    for i in range(count):
        pixels = np.clip(rng.normal(value, 20, (96, 96, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")


@pytest.fixture
def small_pacs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive laid out as pacs-96.tar, and random weights laid out as the shared ones."""
    for i, domain in enumerate(PACS_DOMAINS):
        for k, label in enumerate(("dog", "horse")):
            _pictures(tmp_path / "pacs" / domain / label, 40 + 20 * i + 100 * k)
    with tarfile.open(tmp_path / "pacs-96.tar", "w") as tar:
        tar.add(tmp_path / "pacs", "pacs")
    folder = tmp_path / "mobilenet_v1_1.0_224"
    folder.mkdir()
    with importable(EXAMPLES):
        write_weights(build_module("mobilenet_v1:mobilenet_v1"), folder / "model.safetensors")
    monkeypatch.setenv("EDGE_PSLORA_DATA", str(tmp_path))
    monkeypatch.setenv("EDGE_PSLORA_MODELS", str(tmp_path))
    return tmp_path


def _pixels(stream: Stream, part: str) -> list[list[bytes]]:
    """Per task: every sample as bytes."""
    tasks = [getattr(task, part).inputs for task in stream.tasks]
    return [
        [x.numpy().tobytes() for x in t.batch(np.arange(len(t)))["pixel_values"]] for t in tasks
    ]


def _load(folder: Path, seed: int, name: str) -> Stream:
    base = folder / name
    base.mkdir()
    return pacs(seed, base, 3, cache=folder / "cache")


def test_pacs_is_parted_by_seed_and_no_picture_is_trained_on_and_tested_with(
    small_pacs: Path,
) -> None:
    streams = [_load(small_pacs, seed, f"base{i}") for i, seed in enumerate((0, 0, 1))]
    assert [task.name for task in streams[0].tasks] == list(PACS_DOMAINS)
    for train, test in zip(_pixels(streams[0], "train"), _pixels(streams[0], "test"), strict=True):
        assert (len(train), len(test)) == (3, 3)
        assert not set(train) & set(test)
    assert _pixels(streams[0], "test") == _pixels(streams[1], "test")
    assert _pixels(streams[0], "test") != _pixels(streams[2], "test")


def test_pacs_runs_with_the_example_network(small_pacs: Path) -> None:
    found = run(METHODS["frozen"], _load(small_pacs, 0, "base"), AdaptConfig(), 0)[0]
    assert len(found.matrix) == len(PACS_DOMAINS)


@pytest.mark.skipif(not _shared_tables(), reason="needs ../shared/data or EDGE_PSLORA_DATA")
def test_the_hospitals_are_read_whole(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    stream = heart(0, base)
    assert [task.name for task in stream.tasks] == list(HOSPITALS)
    counts = [len(t.train.targets) + len(t.test.targets) for t in stream.tasks]
    assert counts == [303, 294, 123, 200]
    assert set(stream.joint.targets) == {"0", "1", "2", "3", "4"}
