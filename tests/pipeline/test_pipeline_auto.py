"""Sessions from files to generations with the built-in networks, one test for each kind of data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from edge_pslora import AdaptConfig, TrainConfig, Workspace, adapt, evaluate
from edge_pslora.data.options import ReadOptions
from edge_pslora.models.options import ModelOptions
from tests.pipeline import pipeline_kit as kit
from tests.pipeline.device_checks import assert_a_device_runs_it
from tests.torch_free import TorchFree


def _check_generations(workspace: Path, results: list[Any], device: TorchFree) -> None:
    """What holds of every session, whatever the data."""
    opened = Workspace.open(workspace)
    assert opened.generations() == tuple(range(1, len(results) + 1))
    assert len({r.metrics["history_bytes"] for r in results}) == 1
    for number, result in enumerate(results, start=1):
        assert result.promoted, result.reason
        assert result.generation == number
        facts = json.loads(json.dumps(result.to_dict()))
        assert facts.keys() >= kit.JSON_KEYS
        assert facts["onnx_max_abs_error"] <= 1e-4
        assert all(Path(path).exists() for path in facts["files"].values())
        assert kit.files_of(workspace, number).keys() >= kit.GENERATION_FILES
        generation = opened.generation(number)
        assert generation.manifest.parent == (number - 1 or None)
        history = generation.path / "history.safetensors"
        assert history.stat().st_size == facts["history_bytes"]
    names = {path.name for path in workspace.iterdir()}
    assert names == {"workspace.json", "base", "generations", "current", "staging", "lock"}
    assert list((workspace / "staging").iterdir()) == []
    assert opened.status(verify=True)["damage"] == []
    assert opened.status()["warnings"] == []
    assert_a_device_runs_it(device, workspace)


def test_tables_with_missing_values(tmp_path, device):
    results = []
    read = ReadOptions(missing=(-9.0,))
    for number, labels in enumerate(((0, 1, 2), (3, 4), (5, 6))):
        x, y = kit.digits(labels, 150)
        missing = ("", "?", "-9")[number]
        data = kit.write_csv(tmp_path / f"{number}.csv", x.reshape(len(x), -1), y, missing)
        results.append(adapt(data, model="auto", workspace=tmp_path / "w", read=read))
    _check_generations(tmp_path / "w", results, device)
    assert results[-1].metrics["labels"] == [str(label) for label in range(7)]
    assert results[-1].metrics["tasks"] == ["0", "1", "2"]
    assert len(results[-1].metrics["accuracy_by_task"]) == 3
    x, y = kit.digits(range(7), part="test")
    test = kit.write_csv(tmp_path / "test.csv", x.reshape(len(x), -1), y, "")
    for number, known in ((1, 3), (2, 5), (3, 7)):
        found = evaluate(tmp_path / "w", test, generation=number, compare_torch=True)
        assert found.agreement == 1.0
        assert found.max_abs_error <= 1e-4
        assert len(found.unknown_labels) == 7 - known
        assert all(found.per_label[name] == 0 for name in found.unknown_labels)
    assert found.accuracy > 0.8
    assert found.per_label.keys() == {str(label) for label in range(7)}


def test_pictures_as_arrays(tmp_path, device):
    results = []
    for number, labels in enumerate(((0, 1, 2), range(5))):
        x, y = kit.digits(labels, 100, inverted=number == 1)
        data = kit.write_npz(tmp_path / f"{number}.npz", x, y)
        results.append(adapt(data, model="auto", workspace=tmp_path / "w"))
    _check_generations(tmp_path / "w", results, device)
    first = kit.write_npz(tmp_path / "first.npz", *kit.digits((0, 1, 2), part="test"))
    found = evaluate(tmp_path / "w", first, compare_torch=True)
    assert (found.agreement, found.samples) == (1.0, len(kit.digits((0, 1, 2), part="test")[1]))
    assert found.accuracy > 0.8
    assert results[-1].metrics["retention"] > 0.8


def test_series(tmp_path, device):
    """Waves of two frequencies in three channels."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    time = np.arange(24)[None, :, None] * (0.3 + 0.6 * y[:, None, None])
    x = np.sin(time + rng.uniform(0, 6, (120, 1, 3))) + rng.normal(0, 0.1, (120, 24, 3))
    data = kit.write_npz(tmp_path / "d.npz", x.astype(np.float32), y)
    result = adapt(data, model="auto", workspace=tmp_path / "w")
    _check_generations(tmp_path / "w", [result], device)
    assert result.metrics["accuracy_after"] > 0.8


def test_texts(tmp_path, device):
    results = []
    for number, topics in enumerate((("sport", "food"), ("travel", "money"))):
        data = kit.write_jsonl(tmp_path / f"{number}.jsonl", topics)
        results.append(adapt(data, model="auto", workspace=tmp_path / "w", task=f"news {number}"))
    _check_generations(tmp_path / "w", results, device)
    assert results[1].metrics["tasks"] == ["news 0", "news 1"]
    test = kit.write_jsonl(tmp_path / "test.jsonl", tuple(kit.TOPICS), seed=9)
    found = evaluate(tmp_path / "w", test, compare_torch=True)
    assert found.agreement == 1.0
    assert found.accuracy > 0.9


def test_a_folder_of_images(tmp_path, device):
    results = []
    for number, labels in enumerate(((0, 1), (4, 7))):
        folder = kit.write_images(tmp_path / f"photos {number}", labels)
        if number == 1:  # one that does not decode among sixty: set aside, counted, named
            (folder / "digit 4" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
        options = ModelOptions(image_size=16)
        results.append(adapt(folder, model="auto", workspace=tmp_path / "w", model_options=options))
    _check_generations(tmp_path / "w", results, device)
    assert [r.metrics["rejected"] for r in results] == [0, 1]
    lines = (results[1].folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["where"] for line in lines] == ["digit 4/broken.png"]
    assert not (results[0].folder / "rejected.jsonl").exists()
    assert "broken.png" in (results[1].folder / "report.html").read_text(encoding="utf-8")
    test = kit.write_images(tmp_path / "test", (0, 1, 4, 7), part="test")
    found = evaluate(tmp_path / "w", test, compare_torch=True)
    assert found.agreement == 1.0
    assert found.accuracy > 0.7


def test_regression(tmp_path, device):
    """The ink of a digit's lower half, from the whole picture."""
    results, files = [], []
    for number, labels in enumerate((range(5), range(5, 10))):
        x, _ = kit.digits(labels, 200)
        y = 10 * x[:, 4:].sum((1, 2)) + 100
        data = kit.write_csv(tmp_path / f"{number}.csv", x.reshape(len(x), -1), y)
        files.append(data)
        results.append(adapt(data, model="auto", workspace=tmp_path / "w"))
    _check_generations(tmp_path / "w", results, device)
    assert {r.metrics["metric"] for r in results} == {"r2"}
    for data in files:
        found = evaluate(tmp_path / "w", data, compare_torch=True)
        assert (found.metric, found.agreement) == ("r2", 1.0)
        assert found.accuracy > 0.8
        assert found.per_label == {}


def test_parts_of_a_folder_are_kept_apart(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    kit.write_jsonl(folder / "train.jsonl", ("sport", "food"))
    kit.write_jsonl(folder / "valid.jsonl", ("sport", "food"), 10, seed=1)
    kit.write_jsonl(folder / "test.jsonl", ("sport", "food"), 15, seed=2)
    result = adapt(folder, model="auto", workspace=tmp_path / "w")
    assert (result.metrics["samples"], result.metrics["holdout_samples"]) == (80, 20)
    assert evaluate(tmp_path / "w", folder).samples == 30


def test_the_seed_decides_the_bytes(tmp_path):
    """Same seed, data and threads: the same files, wherever the workspace lies."""
    data = kit.digits_npz(tmp_path / "d.npz", (0, 1), 60)
    files = []
    for number, seed in enumerate((0, 0, 1)):
        config = AdaptConfig(train=TrainConfig(seed=seed))
        adapt(data, model="auto", workspace=tmp_path / str(number), config=config)
        files.append(kit.files_of(tmp_path / str(number), 1))
    first, same, other = files
    timed = {"manifest.json", "report.html", "README.md"}
    assert {name for name in first | same if first.get(name) != same.get(name)} <= timed
    differing = {name for name in first | other if first.get(name) != other.get(name)}
    assert differing >= {"model.safetensors", "model.onnx", "adapter/adapter_model.safetensors"}
