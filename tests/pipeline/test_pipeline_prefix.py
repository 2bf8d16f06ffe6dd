"""`--prefix-cache` and `--adapt-depth` through a whole run: files, resumption, space."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ArrayInputs, blobs, tiny_model

from edge_pslora.config import AdaptConfig, EngineConfig, LoraConfig, TrainConfig
from edge_pslora.errors import ModelError, UsageError
from edge_pslora.models.types import LoadedModel
from edge_pslora.pipeline import prefix as prefix_module
from edge_pslora.pipeline.prefix import Prefix, session_prefix
from edge_pslora.pipeline.prefix_file import MARK, ROWS
from edge_pslora.training.memory import Memory, first_memory
from edge_pslora.training.targets import adapted_targets

CONFIG = AdaptConfig(
    lora=LoraConfig(rank=2, target_modules=("2", "4")),
    train=TrainConfig(epochs=2),
    engine=EngineConfig(prefix_cache="exact"),
)


def _inputs() -> ArrayInputs:
    return ArrayInputs(blobs(("a", "b"), n=40)[0])


def _memory(model: LoadedModel, config: AdaptConfig) -> Memory:
    targets = adapted_targets(model.backbone.model, config)
    return first_memory(model, targets, config, "classification")


def _opened(folder: Path, config: AdaptConfig = CONFIG, run: str = "run", disk: int | None = None):
    model = tiny_model()
    memory = _memory(model, config)
    return model, session_prefix(model, memory, _inputs(), config, folder, run, disk)


def _fill(found: Prefix, model: LoadedModel) -> None:
    assert found.cache is not None
    found.cache.fill(model.backbone, _inputs(), 32, lambda n: None)


class _KilledError(BaseException):
    pass


def _killed_run(folder: Path, samples: int | None = None) -> None:
    """A run that ends in the middle: after all rows, or after some."""
    try:
        _run_until(folder, samples)
    except _KilledError:
        return
    raise AssertionError("it was not killed")


def _run_until(folder: Path, samples: int | None) -> None:
    model, session = _opened(folder)
    with session as found:
        assert found.cache is not None
        if samples is None:
            _fill(found, model)
        else:
            batch = np.arange(samples)
            with torch.no_grad(), found.cache.during(model.backbone, batch):
                model.backbone(**_inputs().batch(batch))
        raise _KilledError


def test_a_finished_session_leaves_no_file(tmp_path):
    model, session = _opened(tmp_path)
    with session as found:
        _fill(found, model)
        assert {p.name for p in tmp_path.iterdir()} == {ROWS, MARK}
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_goes_on_with_all_rows(tmp_path):
    _killed_run(tmp_path)
    with _opened(tmp_path)[1] as found:
        assert found.cache is not None
        assert found.cache.complete


def test_rows_of_a_run_killed_half_way_are_not_trusted(tmp_path):
    _killed_run(tmp_path, samples=32)
    assert not (tmp_path / MARK).exists()
    with _opened(tmp_path)[1] as found:
        assert found.cache is not None
        assert not found.cache.complete


@pytest.mark.parametrize(
    "change", ["another run", "another form", "another cut", "rows lost", "mark damaged"]
)
def test_what_changes_the_rows_makes_them_anew(tmp_path, change):
    _killed_run(tmp_path)
    config, run = CONFIG, "run"
    if change == "another run":
        run = "other"
    elif change == "another form":
        config = replace(CONFIG, engine=EngineConfig(prefix_cache="bf16"))
    elif change == "another cut":
        config = replace(CONFIG, lora=LoraConfig(rank=2, target_modules=("4",)))
    elif change == "rows lost":
        with (tmp_path / ROWS).open("r+b") as file:
            file.truncate(100)  # what a power loss leaves of a file that nobody synced
    else:
        (tmp_path / MARK).write_text(json.dumps({"key": 1}))
    with _opened(tmp_path, config, run)[1] as found:
        assert found.cache is not None
        assert not found.cache.complete


def test_too_little_disk_is_said_and_a_smaller_form_taken(tmp_path, monkeypatch):
    automatic = replace(CONFIG, engine=EngineConfig())
    sizes = {}
    for form, disk in (("exact", None), ("bf16", 8000), ("off", 100)):
        with _opened(tmp_path, automatic, disk=disk)[1] as found:
            sizes[form] = found.note
            assert found.form == form
    assert sizes["exact"] == ""
    assert "kept in bf16" in sizes["bf16"]
    assert "no prefix cache: it takes" in sizes["off"]
    monkeypatch.setattr(prefix_module, "free_bytes", lambda folder: prefix_module.LEFT_FREE + 50)
    with _opened(tmp_path)[1] as found:
        assert found.form == "off"
        assert "50" in found.note


def test_no_cache_where_it_cannot_help(tmp_path):
    everything = replace(CONFIG, lora=LoraConfig(target_modules=("*",)))
    with _opened(tmp_path, everything)[1] as found:
        assert found.cache is None
        assert "no prefix cache" in found.note
    for config in (
        replace(CONFIG, engine=EngineConfig(prefix_cache="off")),
        replace(everything, engine=EngineConfig()),
    ):
        with _opened(tmp_path, config)[1] as found:
            assert found == Prefix()
    assert list(tmp_path.iterdir()) == []


def test_settings_are_checked():
    with pytest.raises(UsageError, match="--prefix-cache"):
        EngineConfig(prefix_cache="float16")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--adapt-depth"):
        EngineConfig(adapt_depth=0)
    low = AdaptConfig(lora=LoraConfig(target_modules=("0",)), engine=EngineConfig(adapt_depth=0.3))
    with pytest.raises(ModelError, match="--adapt-depth"):
        adapted_targets(tiny_model().backbone.model, low)
